"""ImageNet: image folders named by WordNet numbers, shown under their names."""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from timm.data.imagenet_info import ImageNetInfo

from kd_lightning.datamodules.image_folder import ImageFolderDataModule

VOCABULARIES = ("imagenet-22k", "imagenet-1k")  # the second has the last word


def class_names(wnids: Sequence[str]) -> tuple[str, ...]:
    """What WordNet calls the classes; a number that it does not know stays as it is.

    Two classes of one name (the 1000 classes have two of "crane") get their number behind it.

    Args:
        wnids: WordNet numbers, such as ``n01440764``.
    """
    known: dict[str, str] = {}
    for vocabulary in VOCABULARIES:
        info = ImageNetInfo(vocabulary)
        known |= zip(info.label_names(), info.label_descriptions(), strict=True)  # type: ignore[no-untyped-call]
    names = [known.get(wnid, wnid) for wnid in wnids]
    counts = Counter(names)
    return tuple(name if counts[name] == 1 else f"{name} ({wnid})" for name, wnid in zip(names, wnids, strict=True))


class ImageNetDataModule(ImageFolderDataModule):
    """ImageNet under ``root/train/<wnid>/`` and ``root/val/<wnid>/``; the official validation set is the *test* set.

    With all 1000 folders the class indices are the usual ones. A root with some of them is a smaller problem: the
    classes are the folders found, in the same order.

    Args:
        root: Folder of both sets.
        global_batch_size: Samples per optimizer step over all devices.
        **arguments: See `ImageFolderDataModule`.
    """

    def __init__(self, root: str | Path = "data/imagenet", global_batch_size: int = 256, **arguments: Any) -> None:
        super().__init__(root, global_batch_size, **arguments)

    @property
    def wnids(self) -> Sequence[str]:
        """WordNet numbers of the classes, ascending."""
        return self.files("train").classes

    @cached_property
    def classes(self) -> Sequence[str]:
        """Names of the classes, in the order of ``wnids``."""
        return class_names(self.wnids)
