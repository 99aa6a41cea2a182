"""Images as they are stored: the bytes of one, and a set of them with labels."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
SHOWN = 5  # names in an error message


class BadImageError(ValueError):
    """What is there and readable, but is not an image that can be decoded; the message names it."""


class Encoded(NamedTuple):
    """The content of an image file, and where it is from, for a message."""

    data: bytes
    name: str


class EncodedImages(Protocol):
    """Labelled images by row.

    Attributes:
        folder: Where they lie.
        place: A path of theirs alone: what is remembered of them is kept beside it, under a name made of its name.
        classes: Names of the classes in the order of their indices.
        labels: Class indices, int64 ``[M]``.
    """

    @property
    def folder(self) -> Path: ...  # noqa: D102

    @property
    def place(self) -> Path: ...  # noqa: D102

    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def labels(self) -> Tensor: ...  # noqa: D102

    def __len__(self) -> int: ...

    def read(self, row: int) -> Encoded:
        """The image in a row.

        Raises:
            OSError: if it cannot be read.
            BadImageError: if what is there is no longer what was listed.
        """

    def stamps(self, times: bool) -> Iterator[bytes]:
        """What changes when an image changes: names, sizes and, if asked, times."""

    def none(self) -> Self:
        """The same classes without images."""


def few(names: list[str]) -> str:
    """The first names of a list, for a message."""
    return ", ".join(names[:SHOWN]) + (f", … ({len(names)} in all)" if len(names) > SHOWN else "")


def require_same_classes(one: EncodedImages, other: EncodedImages) -> None:
    """Check that both sets have the same classes, in the same order.

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
    if one.classes != other.classes:
        raise ValueError(
            f"training and test set must have their classes in the same order: those of {one.folder.absolute()} "
            f"begin with {few(list(one.classes))}, those of {other.folder.absolute()} with {few(list(other.classes))}"
        )
