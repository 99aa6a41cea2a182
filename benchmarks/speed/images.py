"""The images: a part of CIFAR-100, or noise of the same shape, in the folders that every contender reads."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR100, ImageFolder
from torchvision.transforms import Compose

from benchmarks.speed.setting import CLASSES, SMALL, Setting
from kd_lightning.datamodules.cifar import read_cifar

FOLDER = "cifar100"
COARSE = 8  # noise of 224 pixels is smooth, so that its JPEG files are as small as those of photographs


def some_of_each_class(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Rows of the first ``count`` of each class, ascending."""
    rows = [np.flatnonzero(labels == label)[:count] for label in range(CLASSES)]
    return np.sort(np.concatenate(rows))


def noise(number: int, side: int) -> Image.Image:
    """An image that is a function of its number."""
    coarse = side if side == SMALL else COARSE
    pixels = np.random.default_rng(number).integers(0, 256, (coarse, coarse, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


def save(image: Image.Image, folder: Path, split: str, label: int, number: int) -> None:
    """Write an image into the folder of its class: without loss where it is small, else as JPEG."""
    suffix = "png" if image.width == SMALL else "jpg"
    path = folder / split / f"c{label:02}" / f"{number:05}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_noise(root: Path, side: int, images: int) -> None:
    """So many images of noise, as many of each class, and one for the test."""
    folder = root / FOLDER if side == SMALL else root
    per_class = max(1, images // CLASSES)
    for label in range(CLASSES):
        for number in range(per_class):
            save(noise(label * per_class + number, side), folder, "train", label, number)
        save(noise(label, side), folder, "test" if side == SMALL else "val", label, 0)


def write_cifar(root: Path, source: Path, images: int) -> None:
    """So many images of CIFAR-100, as many of each class, and one for the test.

    Raises:
        FileNotFoundError: if CIFAR-100 is not in ``source``.
    """
    arrays = read_cifar(source, CIFAR100, FOLDER, CLASSES)
    rows = some_of_each_class(arrays.train_labels, max(1, images // CLASSES))
    for row in rows:
        label = int(arrays.train_labels[row])
        save(Image.fromarray(arrays.train_images[row]), root / FOLDER, "train", label, int(row))
    for row in some_of_each_class(arrays.test_labels, 1):
        label = int(arrays.test_labels[row])
        save(Image.fromarray(arrays.test_images[row]), root / FOLDER, "test", label, int(row))


class OneByOne(Dataset[tuple[object, int]]):
    """Small images in memory, each made a PIL image and transformed on its own, as torchvision's CIFAR-100 does it.

    Args:
        images: uint8 ``[M, 32, 32, 3]``.
        labels: int64 ``[M]``.
        transform: Of each image.
    """

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], transform: Compose | None) -> None:
        self.data, self.targets, self.transform = images, labels.tolist(), transform

    def __getitem__(self, index: int) -> tuple[object, int]:
        image = Image.fromarray(self.data[index])
        return (image if self.transform is None else self.transform(image)), self.targets[index]

    def __len__(self) -> int:
        return len(self.data)


def one_by_one(setting: Setting, transform: Compose | None) -> OneByOne | ImageFolder:
    """The training images as torchvision serves them; ``transform`` is an attribute that may be replaced."""
    if setting.networks.side != SMALL:
        return ImageFolder(str(setting.root / "train"), transform)
    arrays = read_cifar(setting.root, CIFAR100, FOLDER, CLASSES)
    return OneByOne(arrays.train_images, arrays.train_labels, transform)
