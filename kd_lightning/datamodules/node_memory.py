"""One copy of a data set for all ranks of a node: a file that they map, gone from its folder before the first step."""

import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from kd_lightning.ranks import is_distributed

IN_MEMORY = Path("/dev/shm")  # a file system in the node's memory
ROOM = 1.05  # of the size of the tensors: what must be free

Facts = Mapping[str, str]
Tensors = dict[str, Tensor]


class Said(NamedTuple):
    """What a rank says of its reading.

    Attributes:
        node: On which node it is.
        path: Where its file is; None if it wrote none.
        fault: Why it could not read; None if it did not fail.
    """

    node: int
    path: str | None
    fault: Exception | None


def folder_with_room(size: float) -> Path:
    """Where a file of so many bytes is put: in the node's memory, or in its folder of temporary files.

    Raises:
        OSError: if there is no room in either.
    """
    folders = [folder for folder in (IN_MEMORY, Path(tempfile.gettempdir())) if folder.is_dir()]
    for folder in folders:
        if shutil.disk_usage(folder).free > ROOM * size:
            return folder
    raise OSError(
        f"the data set takes {size / 1e9:.2f} GB once for each node, and there is no room for it in "
        f"{' or '.join(map(str, folders))}: set TMPDIR to a folder on a local disk"
    )


def mapped(path: str) -> tuple[Tensors, Facts]:
    """The tensors of a file, as a private map of it, and its facts: what is not written to is no memory of its own."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118


def once_a_node(
    read: Callable[[], tuple[Tensors, dict[str, str]]], trainer: pl.Trainer | None
) -> tuple[Tensors, dict[str, str]]:
    """What ``read`` returns; of several ranks on a node the first one reads, and all of them map its copy.

    Every rank must call it. The file is removed as soon as all have it: its memory is freed with the last of them,
    however that ends.

    Args:
        read: Tensors and facts by name.
        trainer: Of the run; None outside of one, where this process reads for itself.

    Raises:
        Exception: what was raised in any rank, in all of them.
    """
    if trainer is None or not is_distributed():
        return read()
    node, token = trainer.node_rank, trainer.strategy.broadcast(uuid.uuid4().hex)
    neighbours = [said.node for said in _told(Said(node, None, None))].count(node)
    if neighbours == 1:
        return read()
    mine = Said(node, None, None)
    if trainer.local_rank == 0:
        mine = _written(read, node, f"kd_lightning-{token}-{node}.safetensors")
    try:
        told = _told(mine)
        path = next((Path(said.path) for said in told if said.node == node and said.path is not None), None)
        if faults := [said.fault for said in told if said.fault is not None]:
            raise faults[0]
        if path is None:
            raise RuntimeError(f"node {node} has {neighbours} ranks, and none of them is its first")
        tensors, facts = mapped(str(path))
        dist.barrier()
    finally:
        if mine.path is not None:
            Path(mine.path).unlink(missing_ok=True)
    return tensors, dict(facts)


def _written(read: Callable[[], tuple[Tensors, dict[str, str]]], node: int, name: str) -> Said:
    path: Path | None = None
    try:
        tensors, facts = read()
        path = folder_with_room(sum(tensor.nbytes for tensor in tensors.values())) / name
        save_file(tensors, path, metadata=facts)
    except Exception as fault:  # whatever it is, the ranks that wait must hear of it
        if path is not None:
            path.unlink(missing_ok=True)
        return Said(node, None, fault)
    return Said(node, str(path), None)


def _told(mine: Said) -> list[Said]:
    """What all ranks say, in the order of the ranks."""
    told: list[Said | None] = [None] * dist.get_world_size()
    dist.all_gather_object(told, mine)
    return [said for said in told if said is not None]
