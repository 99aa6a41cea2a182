"""Images in tar archives ("shards"), read from any place of any of them."""

import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Self

import numpy as np
import torch
from braceexpand import braceexpand
from numpy.typing import NDArray
from torch import Tensor

from kd_lightning.datamodules.encoded import BadImageError, Encoded, few
from kd_lightning.datamodules.shard_index import BLOCK, ShardIndex, indexed

OPEN = 64  # archives that a process keeps open
NAME = 100  # bytes of a name in the header of a member


class OpenShard:
    """An archive that is open for reading at any place, by several threads and forked processes.

    Args:
        path: Of the archive.
        size: That it must have, in bytes.
        time: Of its last change, in ns.

    Raises:
        OSError: if it cannot be opened.
        BadImageError: if it has changed.
    """

    def __init__(self, path: Path, size: int, time: int) -> None:
        self.path, self._file = path, os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        status = os.fstat(self._file)
        if (status.st_size, status.st_mtime_ns) != (size, time):
            raise BadImageError(
                f"{path} has changed since it was indexed, when it had {size} bytes (now {status.st_size}): start anew"
            )

    def read(self, start: int, size: int) -> bytes:
        """The bytes from ``start`` on.

        Raises:
            BadImageError: if there are fewer.
        """
        data = os.pread(self._file, size, start)
        while len(data) < size:  # one call gives 2 GiB at most, and on some file systems less than asked for
            more = os.pread(self._file, size - len(data), start + len(data))
            if not more:
                raise BadImageError(f"{self.path} has been cut off since it was indexed: nothing at byte {start}")
            data += more
        return data


opened = lru_cache(maxsize=OPEN)(OpenShard)


@dataclass(frozen=True)
class ShardImages:
    """The images of some shards; a row is the place in the order of shards and of members within.

    Attributes:
        folder: Where the shards lie.
        classes: Names of the classes in the order of their indices.
        paths: Of the shards.
        stamps_: Version, size and time of each shard, int64 ``[P, 3]``.
        starts: First row of each shard, and the number of rows, int64 ``[P + 1]``.
        offsets: First byte of each image in its shard, int64 ``[M]``.
        sizes: Of each image, in bytes, int64 ``[M]``.
        labels: Class indices, int64 ``[M]``.
    """

    folder: Path
    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    stamps_: NDArray[np.int64]
    starts: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def place(self) -> Path:
        """The first shard."""
        return self.paths[0]

    def shard_of(self, rows: Tensor) -> Tensor:
        """Number of the shard of each row, int64."""
        return torch.from_numpy(np.searchsorted(self.starts, rows.numpy(), side="right") - 1)

    def read(self, row: int) -> Encoded:
        """The image in a row, with the names of its shard and of itself.

        Raises:
            OSError: if the shard cannot be read.
            BadImageError: if the shard has changed since `setup`.
        """
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        _, size, time = self.stamps_[number].tolist()
        start = int(self.offsets[row])
        content = opened(self.paths[number], size, time).read(start - BLOCK, BLOCK + int(self.sizes[row]))
        member = os.fsdecode(content[:NAME].rstrip(b"\0"))
        return Encoded(content[BLOCK:], f"{self.paths[number]}:{member}")

    def stamps(self, times: bool) -> Iterator[bytes]:
        """Name, size and, if asked, time of each shard, and places, sizes and labels of the images."""
        for path, (_, size, time) in zip(self.paths, self.stamps_.tolist(), strict=True):
            yield f"{path.name}\0{size} {time if times else 0}\n".encode()
        for numbers in (self.offsets, self.sizes, self.labels.numpy()):
            yield numbers.tobytes()

    def none(self) -> Self:
        """The same classes without images."""
        empty = self.offsets[:0]
        return replace(
            self, starts=np.zeros_like(self.starts), offsets=empty, sizes=empty, labels=torch.from_numpy(empty)
        )


def expand(pattern: str, folder: Path) -> list[Path]:
    """The shards that a pattern with braces names, such as ``train-{000000..000127}.tar``.

    Raises:
        ValueError: if they are not local files, or the braces do not match.
    """
    if "://" in pattern or pattern.startswith("pipe:"):
        raise ValueError(
            f"shards must be files on a local or shared disk, got {pattern!r}: a remote stream cannot be read at any "
            "place, so an epoch could not be resumed exactly; copy the shards to a disk, or mount the store"
        )
    try:
        return [folder / name for name in braceexpand(pattern)]
    except ValueError as error:
        raise ValueError(f"the braces in the names of shards do not match: {pattern!r}") from error


def require_in_range(path: Path, index: ShardIndex, classes: Sequence[str]) -> None:
    """Check that the labels of a shard are indices of the classes.

    Raises:
        ValueError: if one is not.
    """
    if (highest := int(index.labels.max())) >= len(classes):
        row = int(index.labels.argmax())
        raise ValueError(
            f"{path} has the label {highest} (its image {row}), but there are {len(classes)} classes "
            f"({few(list(classes))}): labels must be in 0 … {len(classes) - 1}"
        )


def open_shards(folder: Path, pattern: str, classes: Sequence[str]) -> ShardImages:
    """The images of the shards that a pattern names, indexed if they are not yet.

    Args:
        folder: Where they lie.
        pattern: File names, with braces.
        classes: Names of the classes in the order of their indices.

    Raises:
        FileNotFoundError: if a shard is not there.
        ValueError: if a shard is named twice, damaged, or has samples without one image and one known label.
    """
    paths = expand(pattern, folder)
    if len(set(paths)) < len(paths):
        raise ValueError(f"shards must be named once each, got {pattern!r}")
    missing = [str(path.absolute()) for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"no shard at {few(missing)}")
    indices = [indexed(path) for path in paths]
    for path, index in zip(paths, indices, strict=True):
        require_in_range(path, index, classes)
    return ShardImages(
        folder,
        tuple(classes),
        tuple(paths),
        np.stack([index.stamp for index in indices]),
        np.cumsum([0, *(len(index.labels) for index in indices)]),
        np.concatenate([index.offsets for index in indices]),
        np.concatenate([index.sizes for index in indices]),
        torch.from_numpy(np.concatenate([index.labels for index in indices])),
    )
