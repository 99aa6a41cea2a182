"""CIFAR-10 and CIFAR-100, from torchvision's archives or from folders of images."""

from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100

from kd_lightning.datamodules.decoded import read_decoded, read_decoded_test_set
from kd_lightning.datamodules.in_memory import ImageArrays, InMemoryDataModule
from kd_lightning.datamodules.mixing import Mixing
from kd_lightning.datamodules.views import View

SIZE = (32, 32)


def archive_folder(root: Path, archive: type[CIFAR10]) -> Path:
    """Where torchvision unpacks an archive."""
    return root / str(archive.base_folder)


def download_cifar(root: Path, archive: type[CIFAR10], folder: str) -> None:
    """Fetch and unpack torchvision's archive, unless the data set is there in either layout."""
    if not archive_folder(root, archive).is_dir() and not (root / folder).is_dir():
        archive(str(root), download=True)


def read_archive(root: Path, archive: type[CIFAR10], training: bool = True) -> ImageArrays:
    """The unpacked archive, rows in its own order; without ``training`` no training image is read.

    Raises:
        ValueError: if a file is missing or has another checksum than torchvision knows.
    """
    try:
        test = archive(str(root), train=False)
        train = archive(str(root), train=True) if training else None
    except RuntimeError as error:
        raise ValueError(f"{archive_folder(root, archive)} is not the whole official archive: remove it") from error
    images, targets = (test.data[:0], []) if train is None else (train.data, train.targets)
    labels = [np.array(part, dtype=np.int64) for part in (targets, test.targets)]
    return ImageArrays(images, labels[0], test.data, labels[1], tuple(test.classes))


def read_cifar(root: Path, archive: type[CIFAR10], folder: str, num_classes: int, training: bool = True) -> ImageArrays:
    """The data set from the first of the two layouts that is there.

    The layouts number the classes alike, but not the samples.

    Args:
        root: Folder that holds the data set's own.
        archive: torchvision's class; its layout is ``<root>/<archive.base_folder>/``.
        folder: The other layout is ``<root>/<folder>/{train,test}/<class>/*``, in any format that Pillow reads.
        num_classes: That there must be.
        training: Whether the training images are read.

    Raises:
        FileNotFoundError: if the data set is in neither place.
        ValueError: if it is damaged, or has another number of classes.
    """
    if archive_folder(root, archive).is_dir():
        arrays = read_archive(root, archive, training)
    elif (root / folder).is_dir():
        arrays = (read_decoded if training else read_decoded_test_set)(root / folder, SIZE)
    else:
        raise FileNotFoundError(
            f"{archive.__name__} is neither in {archive_folder(root, archive)} (torchvision's archive, unpacked) nor "
            f"in {root / folder} (folders of images, train/<class>/ and test/<class>/): "
            "set data.root to the folder that holds one of them, or data.download to true"
        )
    if len(arrays.classes) != num_classes:
        raise ValueError(f"{archive.__name__} must have {num_classes} classes, got {len(arrays.classes)} in {root}")
    return arrays


class CIFAR10DataModule(InMemoryDataModule):
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32 pixels in 10 classes (A. Krizhevsky, 2009).

    Args:
        root: Holds ``cifar-10-batches-py/`` (torchvision's archive, unpacked) or ``cifar10/{train,test}/<class>/*``
            (images in any format that Pillow reads, decoded once into ``cifar10/decoded.safetensors``). Where both
            are there, the archive is read. The layouts number the samples differently.
        download: Fetch torchvision's archive if the data set is in neither place.
        global_batch_size: Samples per optimizer step over all devices.
        eval_batch_size: Samples per evaluation step over all devices; ``global_batch_size`` by default.
        val_fraction: Share of the training set that is held out for validation, in [0, 1).
        validate_on_test: Validate on the test set during training; needs ``val_fraction`` 0.
        drop_last: Drop a last training batch that is smaller than the others.
        repeats: Views of one sample in an epoch (repeated augmentation).
        seed: Of order and views; None takes the run's.
        views: View name -> how it is made; None for a default view of crops with a padding of 4 and mirror images.
        mixing: Mixup or CutMix of training samples; None for none.

    Raises:
        ValueError: if an argument is out of range.
    """

    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        global_batch_size: int = 64,
        eval_batch_size: int | None = None,
        val_fraction: float = 0.0,
        validate_on_test: bool = False,
        drop_last: bool = False,
        repeats: int = 1,
        seed: int | None = None,
        views: dict[str, View] | None = None,
        mixing: Mixing | None = None,
    ) -> None:
        super().__init__(
            global_batch_size,
            eval_batch_size=eval_batch_size,
            val_fraction=val_fraction,
            validate_on_test=validate_on_test,
            drop_last=drop_last,
            repeats=repeats,
            seed=seed,
            views={"default": View()} if views is None else views,
            mixing=mixing,
        )
        self.root, self.download = Path(root), download

    def prepare_data(self) -> None:
        """Fetch the archive if that is asked for and needed."""
        if self.download:
            download_cifar(self.root, CIFAR10, "cifar10")

    def read(self) -> ImageArrays:
        """The data set, from the layout that is there."""
        return read_cifar(self.root, CIFAR10, "cifar10", 10)

    def read_test_set(self) -> ImageArrays:
        """The test set alone, from the layout that is there."""
        return read_cifar(self.root, CIFAR10, "cifar10", 10, training=False)


class CIFAR100DataModule(InMemoryDataModule):
    """CIFAR-100: 50,000 training and 10,000 test images of 32x32 pixels in 100 fine classes (A. Krizhevsky, 2009).

    Args:
        root: Holds ``cifar-100-python/`` (torchvision's archive, unpacked) or ``cifar100/{train,test}/<class>/*``
            (images in any format that Pillow reads, decoded once into ``cifar100/decoded.safetensors``). Where both
            are there, the archive is read. The layouts number the samples differently.
        download: Fetch torchvision's archive if the data set is in neither place.
        global_batch_size: Samples per optimizer step over all devices.
        eval_batch_size: Samples per evaluation step over all devices; ``global_batch_size`` by default.
        val_fraction: Share of the training set that is held out for validation, in [0, 1).
        validate_on_test: Validate on the test set during training; needs ``val_fraction`` 0.
        drop_last: Drop a last training batch that is smaller than the others.
        repeats: Views of one sample in an epoch (repeated augmentation).
        seed: Of order and views; None takes the run's.
        views: View name -> how it is made; None for a default view of crops with a padding of 4 and mirror images.
        mixing: Mixup or CutMix of training samples; None for none.

    Raises:
        ValueError: if an argument is out of range.
    """

    mean = (0.5071, 0.4867, 0.4408)
    std = (0.2675, 0.2565, 0.2761)

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        global_batch_size: int = 64,
        eval_batch_size: int | None = None,
        val_fraction: float = 0.0,
        validate_on_test: bool = False,
        drop_last: bool = False,
        repeats: int = 1,
        seed: int | None = None,
        views: dict[str, View] | None = None,
        mixing: Mixing | None = None,
    ) -> None:
        super().__init__(
            global_batch_size,
            eval_batch_size=eval_batch_size,
            val_fraction=val_fraction,
            validate_on_test=validate_on_test,
            drop_last=drop_last,
            repeats=repeats,
            seed=seed,
            views={"default": View()} if views is None else views,
            mixing=mixing,
        )
        self.root, self.download = Path(root), download

    def prepare_data(self) -> None:
        """Fetch the archive if that is asked for and needed."""
        if self.download:
            download_cifar(self.root, CIFAR100, "cifar100")

    def read(self) -> ImageArrays:
        """The data set, from the layout that is there."""
        return read_cifar(self.root, CIFAR100, "cifar100", 100)

    def read_test_set(self) -> ImageArrays:
        """The test set alone, from the layout that is there."""
        return read_cifar(self.root, CIFAR100, "cifar100", 100, training=False)
