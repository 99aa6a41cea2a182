"""The image files of a folder with one folder per class."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_lightning.datamodules.decoding import read_file
from kd_lightning.datamodules.encoded import SUFFIXES, Encoded, few


@dataclass(frozen=True)
class ImageFiles:
    """What was found; a row is the place in the order of (class, path), as torchvision's `ImageFolder` has it.

    Attributes:
        folder: The folder of the class folders.
        classes: Names of the class folders, ascending.
        names: Paths below ``folder``, encoded, ``[M]``: one array, so that forked workers share its memory (a list of
            a million strings is copied into each of them, by and by, as its reference counts are touched).
        labels: Class indices, int64 ``[M]``.
    """

    folder: Path
    classes: tuple[str, ...]
    names: NDArray[np.bytes_]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def place(self) -> Path:
        """The folder."""
        return self.folder

    def path(self, row: int) -> Path:
        """The file in a row."""
        return self.folder / os.fsdecode(self.names[row])

    def read(self, row: int) -> Encoded:
        """The content of the file in a row.

        Raises:
            OSError: if it cannot be read.
        """
        return read_file(os.path.join(self.folder, os.fsdecode(self.names[row])))

    def stamps(self, times: bool) -> Iterator[bytes]:
        """Name, size and, if asked, time of each file."""
        for row in range(len(self)):
            status = self.path(row).stat()
            yield b"%b\0%d %d\n" % (self.names[row], status.st_size, status.st_mtime_ns if times else 0)

    def none(self) -> "ImageFiles":
        """The same classes without files."""
        return replace(self, names=self.names[:0], labels=self.labels[:0])


def images_below(folder: Path) -> Iterator[str]:
    """Paths of the image files below a folder, in a fixed order; what is hidden is left out."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield os.path.join(parent, name)


def list_images(folder: Path) -> ImageFiles:
    """The images of ``folder/<class>/…``.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it has no class folders, or a class folder has no images.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no image folder at {folder.absolute()}: expected one folder per class there")
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise ValueError(f"{folder.absolute()} has no class folders: expected {folder.name}/<class>/<image>")
    names: list[bytes] = []
    counts: list[int] = []
    for name in classes:
        found = [os.fsencode(os.path.relpath(path, folder)) for path in images_below(folder / name)]
        names += found
        counts.append(len(found))
    empty = [str((folder / name).absolute()) for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        raise ValueError(f"class folder without images: {few(empty)}; known suffixes are {', '.join(SUFFIXES)}")
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor(counts))
    return ImageFiles(folder, tuple(classes), np.array(names), labels)
