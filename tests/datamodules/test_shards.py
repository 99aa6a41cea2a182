"""Shards have the names, views, order, splits and exact resume of image folders, and every fault is named."""

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from kd_lightning.batch import Batch
from kd_lightning.datamodules import ImageFolderDataModule, ShardsDataModule
from kd_lightning.datamodules import shard_index as indexer
from kd_lightning.datamodules.bad_images import fingerprint
from kd_lightning.datamodules.encoded import BadImageError
from kd_lightning.datamodules.make_shards import main, make_shards
from kd_lightning.datamodules.shard_images import ShardImages
from kd_lightning.datamodules.shard_index import index_path, index_shard, indexed, stored

TRAIN, TEST = "train-{000000..000004}.tar", "val-{000000..000002}.tar"
SETTINGS = {"image_size": 16, "workers": 0, "seed": 1}


@pytest.fixture
def shards(image_root: Path, tmp_path: Path) -> Path:
    """The nine training images two a shard, the five test images two a shard; in the folders' order."""
    for name in ("train", "val"):
        make_shards(image_root / name, tmp_path / "shards" / name, per_shard=2, shuffle=False)
    return tmp_path / "shards"


def module(root: Path, *, batch: int = 3, **arguments: Any) -> ShardsDataModule:
    """Set up, with small images and without workers."""
    data = ShardsDataModule(root, TRAIN, TEST, batch, **SETTINGS | arguments)
    data.setup("fit")
    return data


def as_rank(data: ShardsDataModule, rank: int, world: int) -> ShardsDataModule:
    """As a rank of a Trainer on several devices has it."""
    strategy = SimpleNamespace(root_device=torch.device("cpu"), broadcast=lambda own: own)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world, strategy=strategy)  # type: ignore[assignment]
    return data


def equal(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(x, y)
        for a, b in zip(one, other, strict=True)
        for x, y in ((a.image, b.image), (a.target, b.target), (a.index, b.index), (a.number, b.number))
    )


def epoch(data: ImageFolderDataModule, number: int) -> list[Batch]:
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(number)
    return list(loader)


def image(seed: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


def write(path: Path, members: Mapping[str, bytes]) -> Path:
    """An archive of one's own."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_batches_are_those_of_the_folder(image_root: Path, shards: Path) -> None:
    folder = ImageFolderDataModule(image_root, 3, auto_augment="rand-m9-mstd0.5-inc1", repeats=2, **SETTINGS)
    folder.setup("fit")
    data = module(shards, auto_augment="rand-m9-mstd0.5-inc1", repeats=2)
    assert data.classes == folder.classes
    assert data.train_targets.tolist() == folder.train_targets.tolist()
    for number in range(2):
        assert equal(epoch(data, number), epoch(folder, number))
    assert equal(list(data.test_dataloader()), list(folder.test_dataloader()))


def test_the_test_set_may_be_a_folder(image_root: Path, shards: Path) -> None:
    (image_root / "val").rename(shards / "val")
    data = ShardsDataModule(shards, TRAIN, "val", 3, **SETTINGS)
    data.setup("fit")
    assert equal(list(data.test_dataloader()), list(module(shards).test_dataloader()))


def test_mixed_classes_are_the_same_images(image_root: Path, shards: Path) -> None:
    make_shards(image_root / "train", shards / "mixed", per_shard=4)
    data = ShardsDataModule(shards, "mixed-{000000..000002}.tar", TEST, 3, **SETTINGS)
    data.setup("fit")
    files, plain = data.files("train"), module(shards).files("train")
    rows = [int(files.read(row).name.split(":")[-1].split(".")[0]) for row in range(9)]  # of the folder
    assert rows != list(range(9)) == sorted(rows)
    assert [files.read(row).data for row in range(9)] == [plain.read(row).data for row in rows]
    assert data.train_targets.tolist() == plain.labels[rows].tolist()


@pytest.mark.parametrize("window", [None, 2])
def test_workers_change_nothing(shards: Path, window: int | None) -> None:
    one, two = module(shards, shuffle_window=window), module(shards, shuffle_window=window, workers=2)
    assert all(equal(epoch(one, number), epoch(two, number)) for number in range(2))
    two.teardown("fit")


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_take_turns_in_one_order(shards: Path, world: int) -> None:
    whole = epoch(module(shards, batch=6, shuffle_window=2), 1)
    parts = [epoch(as_rank(module(shards, batch=6, shuffle_window=2), rank, world), 1) for rank in range(world)]
    for rank, part in enumerate(parts):
        for mine, batch in zip(part, whole, strict=False):
            assert mine.index is not None
            assert batch.index is not None
            assert mine.index.tolist() == batch.index[rank::world].tolist()
            assert torch.equal(mine.image, batch.image[rank::world])
    seen = [row for part in parts for batch in part for row in batch.index.tolist()]
    assert len(seen) == len(set(seen)) >= 6


@pytest.mark.parametrize("workers", [0, 1])
def test_training_resumes_at_every_batch(shards: Path, workers: int) -> None:
    whole = epoch(module(shards, batch=2, shuffle_window=2), 3)
    data = module(shards, batch=2, shuffle_window=2, workers=workers)
    for position in range(len(whole)):
        loader = data.train_dataloader()
        loader.load_state_dict({"epoch": 3, "position": position})
        loader.batch_sampler.set_epoch(3)
        assert equal(list(loader), whole[position:])
    data.teardown("fit")


def test_a_window_of_shards_is_shuffled_together(shards: Path) -> None:
    data = module(shards, batch=2, shuffle_window=2)
    orders = []
    for number in range(4):
        plan = data.plan("train", train=True)
        plan.set_epoch(number)
        orders.append(plan.order()[0])
        assert sorted(orders[-1].tolist()) == list(range(9))
        images = data.files("train")
        assert isinstance(images, ShardImages)
        met = images.shard_of(orders[-1]).tolist()
        first = [shard for n, shard in enumerate(met) if shard not in met[:n]]
        sizes = [2, 2, 2, 2, 1]
        start = 0
        for window in (first[:2], first[2:4], first[4:]):  # nothing of the next two comes before these are through
            stop = start + sum(sizes[shard] for shard in window)
            assert set(met[start:stop]) == set(window)
            start = stop
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_held_out_samples_keep_their_rows(image_root: Path, shards: Path) -> None:
    folder = ImageFolderDataModule(image_root, 3, val_fraction=1 / 3, **SETTINGS)
    folder.setup("fit")
    data = module(shards, val_fraction=1 / 3, shuffle_window=2)
    assert data.rows("val").tolist() == folder.rows("val").tolist()
    assert sorted(row for batch in epoch(data, 0) for row in batch.index.tolist()) == data.rows("train").tolist()


def test_a_store_knows_the_images(shards: Path) -> None:
    facts = module(shards).view_facts()
    assert facts == module(shards).view_facts()
    shard = shards / "train-000001.tar"
    content = bytearray(shard.read_bytes())
    with tarfile.open(shard) as tar:
        place = tar.getmember("00000002.cls").offset_data
    assert content[place : place + 1] == b"1"
    content[place : place + 1] = b"2"
    shard.chmod(0o644)
    shard.write_bytes(content)
    assert module(shards).view_facts() != facts


def test_a_store_does_not_mind_times_but_a_verdict_on_bad_images_does(shards: Path) -> None:
    before = module(shards)
    os.utime(shards / "train-000001.tar", ns=(1, 1))
    after = module(shards)
    assert before.view_facts() == after.view_facts()
    assert fingerprint(before.files("train")) != fingerprint(after.files("train"))


def test_the_training_set_can_be_done_without(shards: Path) -> None:
    for path in shards.glob("train-*"):
        path.unlink()
    data = ShardsDataModule(shards, TRAIN, TEST, 3, **SETTINGS)
    data.forgo_training_set()
    data.prepare_data()
    data.setup("test")
    assert (len(data.rows("train")), len(data.rows("test")), data.num_classes) == (0, 5, 3)


class Recorder(pl.LightningModule):
    """Learns nothing and keeps the names that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, int]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen += zip(batch.index.tolist(), batch.number.tolist(), strict=True)
        return self.weight * batch.image.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_trainer_trains_from_shards(shards: Path, tmp_path: Path) -> None:
    for path in shards.glob("*.npz"):
        path.unlink()
    data, recorder = ShardsDataModule(shards, TRAIN, TEST, 3, shuffle_window=2, **SETTINGS), Recorder()
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(recorder, data)
    assert sorted(recorder.seen) == [(row, number) for row in range(9) for number in range(2)]
    assert len(list(shards.glob("*.npz"))) == 8  # prepare_data indexed them all


# The index.


def test_an_index_is_made_once(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(indexer, "index_shard", refuse)
    assert len(module(shards).rows("train")) == 9


def test_an_index_says_where_the_images_are(shards: Path) -> None:
    path = shards / "train-000001.tar"
    index = index_shard(path)
    with tarfile.open(path) as tar:
        images = [member for member in tar if member.name.endswith("jpg")]
    assert index.offsets.tolist() == [member.offset_data for member in images]
    assert index.sizes.tolist() == [member.size for member in images]
    assert index.labels.tolist() == [1, 1]


@pytest.mark.parametrize("damage", [b"", b"no archive", b"PK\3\4"])
def test_a_damaged_index_is_made_again(shards: Path, damage: bytes) -> None:
    path = shards / "train-000001.tar"
    index_path(path).write_bytes(damage)
    assert stored(path) is None
    assert indexed(path).labels.tolist() == [1, 1]
    assert stored(path) is not None


def test_an_index_of_another_archive_is_made_again(shards: Path) -> None:
    path = shards / "train-000000.tar"
    path.chmod(0o644)
    path.write_bytes((shards / "train-000004.tar").read_bytes())
    assert stored(path) is None
    assert module(shards).train_targets.tolist() == [2, 1, 1, 1, 1, 2, 2, 2]


def test_an_index_that_cannot_be_kept_is_no_fault(shards: Path) -> None:
    path = shards / "train-000000.tar"
    index_path(path).unlink()
    index_path(path).mkdir()
    (index_path(path) / "x").touch()
    index = index_shard(path)
    indexer.store(path, index)
    assert list(shards.glob("*.part")) == []


def test_labels_may_be_in_json_and_names_in_folders(tmp_path: Path) -> None:
    members = {
        "a/x.1/000.jpg": image(),
        "a/x.1/000.json": json.dumps({"label": 3}).encode(),
        "a/x.1/000.seg.png": b"no image of its own",
        "__meta__.json": b"{}",
        "._000.jpg": b"of another system",
        "b/000.cls": b" 1\n",
        "b/000.JPEG": image(1),
        "b/000.json": json.dumps({"label": 4}).encode(),
    }
    index = index_shard(write(tmp_path / "x.tar", members))
    assert index.labels.tolist() == [3, 1]
    assert index.sizes.tolist() == [len(image()), len(image(1))]


FAULTS: dict[str, tuple[dict[str, bytes], str]] = {
    "no label": ({"7.jpg": b"x"}, r"x\.tar:7 has no label: expected a member \.cls, or a \.json with label or cls"),
    "json without": ({"7.jpg": b"x", "7.json": b"{}"}, r"x\.tar:7 has no label"),
    "no json": ({"7.jpg": b"x", "7.json": b"?"}, r"x\.tar:7 has no label"),
    "negative": ({"7.jpg": b"x", "7.cls": b"-1"}, r"the label of .*x\.tar:7 must be a class index >= 0, got '-1'"),
    "a word": ({"7.jpg": b"x", "7.json": b'{"cls": "cat"}'}, "must be a class index >= 0, got 'cat'"),
    "true": ({"7.jpg": b"x", "7.json": b'{"cls": true}'}, "must be a class index >= 0, got True"),
    "no image": ({"7.cls": b"0"}, r"x\.tar:7 must have one image, got the members cls"),
    "two images": ({"7.jpg": b"x", "7.png": b"x", "7.cls": b"0"}, "must have one image, got the members cls, jpg, png"),
    "twice": (
        {"7.jpg": b"x", "7.cls": b"0", "8.jpg": b"x", "8.cls": b"0", "7.png": b"x"},
        r"x\.tar has the key 7 twice, with others in between",
    ),
    "member twice": ({"7.jpg": b"x", "7.JPG": b"x", "7.cls": b"0"}, r"x\.tar has the member 7\.jpg twice"),
    "nothing": ({}, r"x\.tar has no samples: expected members such as 000123\.jpg and 000123\.cls"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_sample_is_named(tmp_path: Path, fault: str) -> None:
    members, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message):
        index_shard(write(tmp_path / "x.tar", members))


def cuts(path: Path) -> Iterator[int]:
    """Lengths: within the header, within an image, within a label, after the last member."""
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    yield from (members[1].offset + 100, members[1].offset_data + 70, members[-1].offset + 20)
    yield members[-1].offset_data + 512


def test_a_truncated_archive_is_named(shards: Path) -> None:
    path = shards / "train-000000.tar"
    whole = path.read_bytes()
    for cut in cuts(path):
        part = path.with_name("part.tar")
        part.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"part\.tar is (truncated or damaged|not a whole)"):
            index_shard(part)


def test_a_damaged_header_is_no_end(shards: Path) -> None:
    path = shards / "train-000000.tar"
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        start = tar.getmembers()[2].offset
    content[start + 150] ^= 1
    damaged = path.with_name("damaged.tar")
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match=f"damaged.tar is truncated or damaged: no member .* at byte {start}"):
        index_shard(damaged)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("7.jpg"))
    with pytest.raises(ValueError, match=r"x\.tar is not a whole, uncompressed tar archive"):
        index_shard(tmp_path / "x.tar")


# Faults of a set.


@pytest.mark.parametrize("pattern", ["http://host/train-{000000..000004}.tar", "pipe:cat train.tar", "s3://b/x.tar"])
def test_remote_shards_are_refused(shards: Path, pattern: str) -> None:
    data = ShardsDataModule(shards, pattern, TEST)
    with pytest.raises(ValueError, match=r"shards must be files on a local or shared disk, got .*copy the shards"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("train-{000000..000006}.tar", r"no shard at .*train-000005\.tar, .*train-000006\.tar"),
        ("train-{000000..", "braces in the names of shards do not match"),
        ("train-{000001,000001}.tar", "shards must be named once each"),
    ],
)
def test_shards_that_are_not_there_are_named(shards: Path, pattern: str, message: str) -> None:
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        ShardsDataModule(shards, pattern, TEST).setup("fit")


def test_a_class_out_of_range_is_named(shards: Path) -> None:
    (shards / "classes.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"train-000003\.tar has the label 2 \(its image 0\), but there are 2 classes"):
        module(shards)


@pytest.mark.parametrize(("content", "message"), [("", "got none"), ("a\nb\na\n", r"got \['a'\] again")])
def test_classes_are_named_once(shards: Path, content: str, message: str) -> None:
    (shards / "classes.txt").write_text(content)
    with pytest.raises(ValueError, match=rf"classes\.txt must name each class once, {message}"):
        module(shards)


def test_missing_class_names_are_asked_for(shards: Path) -> None:
    (shards / "classes.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no classes\.txt at .*write the name of each class there, one a line"):
        module(shards)


def test_a_folder_with_other_labels_is_refused(image_root: Path, shards: Path) -> None:
    (image_root / "val").rename(shards / "val")
    (shards / "classes.txt").write_text("c\nb\na\n")
    with pytest.raises(ValueError, match=r"classes in the same order: those of .* begin with c, b, a, .* a, b, c"):
        ShardsDataModule(shards, TRAIN, "val", **SETTINGS).setup("fit")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_changes_meanwhile_is_noticed(shards: Path, workers: int) -> None:
    data, path = module(shards, workers=workers), shards / "val-000001.tar"
    size = path.stat().st_size
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:1024])
    changed = f"{re.escape(str(path))} has changed since it was indexed, when it had {size} bytes \\(now 1024\\)"
    with pytest.raises(BadImageError, match=changed):
        list(data.test_dataloader())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_named_with_its_shard(shards: Path, workers: int) -> None:
    write(shards / "bad.tar", {"x/7.jpg": b"<html>", "x/7.cls": b"0"})
    data = ShardsDataModule(shards, TRAIN, "bad.tar", **SETTINGS | {"workers": workers})
    data.setup("test")
    with pytest.raises(BadImageError, match=r"^cannot decode image .*/bad\.tar:x/7\.jpg: cannot identify"):
        list(data.test_dataloader())


def test_bad_images_are_left_out_on_request(shards: Path) -> None:
    good = {f"{n}.{suffix}": content for n in range(3) for suffix, content in (("jpg", image(n)), ("cls", b"%d" % n))}
    write(shards / "some.tar", {"x.jpg": b"<html>", "x.cls": b"0"} | good)
    for _ in range(2):  # the second time by the verdict that was kept
        data = ShardsDataModule(shards, "some.tar", TEST, on_bad_image="skip", **SETTINGS)
        data.setup("fit")
        assert (data.skipped, data.rows("train").tolist()) == (1, [1, 2, 3])
    assert (shards / ".some.tar.bad_images.json").is_file()


def test_a_window_without_shards_is_refused(shards: Path) -> None:
    with pytest.raises(ValueError, match="shuffle_window must be >= 1, got 0"):
        module(shards, shuffle_window=0)


# Making them.


def test_the_same_files_give_the_same_shards(image_root: Path, shards: Path) -> None:
    one, other = (make_shards(image_root / "train", shards / f"{n}/train", per_shard=4) for n in range(2))
    assert [path.name for path in one] == [f"train-{n:06}.tar" for n in range(3)]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_shards_are_made_from_the_command_line(
    image_root: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = shards / "again/train"
    monkeypatch.setattr("sys.argv", ["x", str(image_root / "train"), str(target), "--per-shard=2", "--in-order"])
    main()
    assert capsys.readouterr().out == f"5 shards from {target}-000000.tar on\n"
    for path in shards.glob("train-*.tar"):
        assert (target.parent / path.name).read_bytes() == path.read_bytes()


def test_nothing_is_overwritten(image_root: Path, shards: Path) -> None:
    with pytest.raises(FileExistsError, match=r"train-000000\.tar is there already: remove it"):
        make_shards(image_root / "train", shards / "train")


def test_shards_of_other_classes_are_refused(image_root: Path, shards: Path) -> None:
    (image_root / "train/c").rename(image_root / "train/d")
    with pytest.raises(ValueError, match=r"classes\.txt names other classes than .*/train has: write into another"):
        make_shards(image_root / "train", shards / "other")


def test_a_shard_has_an_image(image_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="per_shard must be >= 1, got 0"):
        make_shards(image_root / "train", tmp_path / "x", per_shard=0)
