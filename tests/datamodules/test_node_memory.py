"""Two real processes over gloo that are ranks of one node, or of two."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from kd_lightning.datamodules import DigitsDataModule, in_memory, node_memory
from kd_lightning.datamodules.in_memory import fits
from kd_lightning.datamodules.node_memory import folder_with_room, once_a_node

SCRIPT = '''
"""Set the digits up as one of two ranks, and say what this process holds."""
import hashlib, json, sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.datamodules.node_memory import once_a_node

rank, out = int(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{out}/group", rank=rank, world_size=2)


def broadcast(value):
    values = [value]
    dist.broadcast_object_list(values, 0)
    return values[0]


def rank_of(node, local):
    strategy = SimpleNamespace(broadcast=broadcast, root_device=torch.device("cpu"))
    return SimpleNamespace(node_rank=node, local_rank=local, global_rank=rank, world_size=2, strategy=strategy)


def maps():
    """Device, inode, name, and kB of the maps that are this package's."""
    found, name = [], None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            name = line if "kd_lightning-" in line else None
            if name:
                found.append({"file": [*words[3:5]], "gone": "(deleted)" in line, "mode": words[1]})
        elif name:
            found[-1][words[0].rstrip(":")] = words[1]
    return found


class Counted(DigitsDataModule):
    reads = 0

    def read(self):
        self.reads += 1
        return super().read()


class Broken(DigitsDataModule):
    def read(self):
        raise ValueError("the archive is damaged")


def seen(node, local):
    data = Counted(global_batch_size=64, seed=3)
    data.trainer = rank_of(node, local)
    data.setup()
    batches = [batch.image for batch in data.train_dataloader()]
    digest = hashlib.sha256(b"".join(image.numpy().tobytes() for image in batches)).hexdigest()
    dist.barrier()  # so that both hold what they hold
    held = maps()
    dist.barrier()
    return {"reads": data.reads, "digest": digest, "maps": held, "classes": data.classes}


said = {"one node": seen(0, rank), "two nodes": seen(rank, 0)}
try:
    data = Broken(global_batch_size=64)
    data.trainer = rank_of(0, rank)
    data.setup()
except ValueError as error:
    said["fault"] = str(error)
(out / f"{rank}.json").write_text(json.dumps(said))
'''


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("node")
    (out / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(out / "script.py")]
    ranks = [
        subprocess.Popen([*command, str(rank), str(out)], env=os.environ | {"TMPDIR": str(out)}, stderr=subprocess.PIPE)
        for rank in (0, 1)
    ]
    for rank in ranks:
        _, fault = rank.communicate(timeout=200)
        assert rank.returncode == 0, fault.decode()[-3000:]
    assert not list(out.glob("kd_lightning-*"))
    return [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]


def alone(rank: int) -> list[Tensor]:
    data = DigitsDataModule(global_batch_size=64, seed=3)
    data.setup()
    return [batch.image[rank::2] for batch in data.train_dataloader()]


def test_one_rank_reads_and_both_map_its_copy(said: list[dict[str, Any]]) -> None:
    first, second = (rank["one node"] for rank in said)
    assert (first["reads"], second["reads"]) == (1, 0)
    assert first["maps"]
    files = [{tuple(held["file"]) for held in rank["maps"]} for rank in (first, second)]
    assert files[0] == files[1]
    assert len(files[0]) == 1


def test_its_pages_are_counted_once(said: list[dict[str, Any]]) -> None:
    for rank in said:
        maps = rank["one node"]["maps"]
        resident, proportional, private = (
            sum(int(held[key]) for held in maps) for key in ("Rss", "Pss", "Private_Dirty")
        )
        assert resident > 100  # kB of 1,797 images of 8x8 pixels
        assert proportional < 0.7 * resident
        assert private == 0


def test_the_file_is_gone_while_it_is_used(said: list[dict[str, Any]]) -> None:
    assert all(held["gone"] for rank in said for held in rank["one node"]["maps"])
    assert not list(node_memory.IN_MEMORY.glob("kd_lightning-*"))


def test_batches_are_those_of_one_process(said: list[dict[str, Any]]) -> None:
    for rank, seen in enumerate(said):
        ours = b"".join(image.numpy().tobytes() for image in alone(rank))
        assert seen["one node"]["digest"] == seen["two nodes"]["digest"] == hashlib.sha256(ours).hexdigest()
        assert len(seen["one node"]["classes"]) == 10


def test_a_rank_alone_on_its_node_reads_for_itself(said: list[dict[str, Any]]) -> None:
    assert [rank["two nodes"]["reads"] for rank in said] == [1, 1]


def test_all_ranks_hear_of_a_fault(said: list[dict[str, Any]]) -> None:
    assert [rank["fault"] for rank in said] == 2 * ["the archive is damaged"]


def test_one_process_writes_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_memory, "save_file", None)
    tensor = torch.ones(2)
    tensors, facts = once_a_node(lambda: ({"a": tensor}, {"b": "c"}), None)
    assert tensors["a"] is tensor
    assert facts == {"b": "c"}


class Usage(NamedTuple):
    free: int


@pytest.mark.parametrize(("free", "place"), [((900, 10), 0), ((100, 900), 1)])
def test_the_first_folder_with_room(
    free: tuple[int, int], place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / "memory", tmp_path / "disk"]
    for folder in folders:
        folder.mkdir()
    monkeypatch.setattr(node_memory, "IN_MEMORY", folders[0])
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(folders[1]))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(free[folders.index(folder)]))
    assert folder_with_room(200) == folders[place]
    with pytest.raises(OSError, match=r"takes 0\.00 GB once for each node, .* no room .* set TMPDIR"):
        folder_with_room(1000)


def test_a_quarter_of_what_is_free_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (400, 1000))
    gpu = torch.device("cuda", 0)
    assert fits(100, gpu)
    assert not fits(101, gpu)
    assert fits(10**15, torch.device("cpu"))


def test_images_that_do_not_fit_stay_and_batches_move(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = DigitsDataModule(global_batch_size=32, seed=3)
    moved.setup()
    meta = torch.device("meta")
    monkeypatch.setattr(in_memory, "fits", lambda size, device: device.type != "meta")
    store = moved.store("train", meta)
    assert not store.packed.is_meta
    assert store.target.is_meta
