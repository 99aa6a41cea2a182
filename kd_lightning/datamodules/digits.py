"""Handwritten digits that come with scikit-learn: 1797 grey images of 8x8 pixels, for runs of seconds."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from kd_lightning.datamodules.in_memory import ImageArrays, InMemoryDataModule
from kd_lightning.datamodules.mixing import Mixing
from kd_lightning.datamodules.views import View

TEST_SIZE = 450
MEAN = (0.3053,)
STD = (0.3758,)


def digits() -> ImageArrays:
    """The digits, their grey values 0 … 16 spread over 0 … 255."""
    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    train, test = train_test_split(np.arange(len(labels)), test_size=TEST_SIZE, stratify=labels, random_state=0)
    train, test = np.sort(train), np.sort(test)
    classes = tuple(str(digit) for digit in range(10))
    return ImageArrays(images[train], labels[train], images[test], labels[test], classes)


class DigitsDataModule(InMemoryDataModule):
    """The digits 0 to 9 in one grey channel of 8x8 pixels.

    scikit-learn's set has no official split. Here 450 samples are the test set, chosen once by its
    ``train_test_split(..., test_size=450, stratify=labels, random_state=0)``, and the other 1347 the training set,
    both in the original order. By default a tenth of the training set, 135 samples, is held out for validation.

    Args:
        global_batch_size: Samples per optimizer step over all devices.
        eval_batch_size: Samples per evaluation step over all devices; ``global_batch_size`` by default.
        val_fraction: Share of the training set that is held out for validation, in [0, 1).
        validate_on_test: Validate on the test set during training; needs ``val_fraction`` 0.
        drop_last: Drop a last training batch that is smaller than the others.
        repeats: Views of one sample in an epoch (repeated augmentation).
        seed: Of order and views; None takes the run's.
        views: View name -> how it is made; None for a default view of crops with a padding of 1 pixel. A view of
            one's own states ``flip: false``, for a mirrored digit is none.
        mixing: Mixup or CutMix of training samples; None for none.

    Raises:
        ValueError: if an argument is out of range.
    """

    mean = MEAN
    std = STD

    def __init__(
        self,
        global_batch_size: int = 64,
        eval_batch_size: int | None = None,
        val_fraction: float = 0.1,
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
            views={"default": View(crop_padding=1, flip=False)} if views is None else views,
            mixing=mixing,
        )

    def read_test_set(self) -> ImageArrays:
        """The digits without the training images; scikit-learn has both in one file."""
        arrays = digits()
        return arrays._replace(train_images=arrays.train_images[:0], train_labels=arrays.train_labels[:0])

    def read(self) -> ImageArrays:
        """The digits, their grey values 0 … 16 spread over 0 … 255."""
        return digits()
