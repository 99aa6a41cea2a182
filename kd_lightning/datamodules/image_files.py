"""The image files of a folder with one folder per class, and how one is decoded."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
SHOWN = 5  # names in an error message


class BadImageError(ValueError):
    """A file that is there and readable, but is not an image that can be decoded; the message names it."""


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

    def path(self, row: int) -> Path:
        """The file in a row."""
        return self.folder / os.fsdecode(self.names[row])

    def none(self) -> "ImageFiles":
        """The same classes without files."""
        return replace(self, names=self.names[:0], labels=self.labels[:0])


def few(names: list[str]) -> str:
    """The first names of a list, for a message."""
    return ", ".join(names[:SHOWN]) + (f", … ({len(names)} in all)" if len(names) > SHOWN else "")


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


def require_same_classes(one: ImageFiles, other: ImageFiles) -> None:
    """Check that both folders have the same class folders.

    Raises:
        ValueError: if not; it names those that only one of them has.
    """
    only = [
        f"only in {a.folder.absolute()}: {few(sorted(set(a.classes) - set(b.classes)))}"
        for a, b in ((one, other), (other, one))
        if set(a.classes) - set(b.classes)
    ]
    if only:
        raise ValueError(f"training and test set must have the same class folders; {'; '.join(only)}")


def as_rgb(image: Image.Image) -> Image.Image:
    """Eight bits of red, green and blue.

    Sixteen-bit grey values keep their high byte, as Pillow keeps it of sixteen-bit colours; its own conversion clips
    them at 255. Transparency is dropped.

    Raises:
        ValueError: if the values of an image are in no known range.
    """
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.size and (grey.min() < 0 or grey.max() > 0xFFFF):
            raise ValueError(f"32-bit grey values in {grey.min()} … {grey.max()}, expected at most 16 bits")
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point grey values have no known range")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the direct way is the same, with a warning
    return image.convert("RGB")


def decode(path: Path) -> Image.Image:
    """The image in a file, in RGB; EXIF orientation is not applied, as in the published pipelines.

    Raises:
        OSError: if the file cannot be read.
        BadImageError: if what was read cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            return as_rgb(image)
    except Exception as error:  # Pillow's decoders let out whatever they meet: SyntaxError, struct.error, zlib.error
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise BadImageError(f"cannot decode image {path}: {error}") from error
