"""A data module whose training images are its own, and everything else another data set's."""

from abc import ABC
from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from kd_lightning.datamodules.base import ImageDataModule
from kd_lightning.datamodules.mixing import Mixing


@runtime_checkable
class CanMix(Protocol):
    """A data module that mixes its training images, if it is told to."""

    mixing: Mixing | None


class BorrowedDataModule(ImageDataModule, ABC):
    """Classes, shape, normalisation, validation and test of a data set whose training images are never read.

    Args:
        data: Whose test set is read; ``val_fraction`` 0.
        global_batch_size: See `ImageDataModule`.
        drop_last: See `ImageDataModule`.
        repeats: See `ImageDataModule`.
        seed: See `ImageDataModule`.

    Attributes:
        unlabelled: Why there are no classes of training images, for an error.
        mixing_instead: What to do in place of mixing the data set's images, for an error.
    """

    unlabelled: ClassVar[str]
    mixing_instead: ClassVar[str]

    def __init__(
        self,
        data: ImageDataModule,
        global_batch_size: int,
        *,
        drop_last: bool = False,
        repeats: int = 1,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            global_batch_size,
            eval_batch_size=data.eval_batch_size,
            validate_on_test=data.validate_on_test,
            drop_last=drop_last,
            repeats=repeats,
            seed=seed,
        )
        self.data = data

    def prepare_data(self) -> None:
        """As the data set does."""
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        """Read the test set.

        Raises:
            ValueError: if the validation set is a part of the training set, the test set cannot be read alone, or the
                training images, which are not read, are to be mixed.
        """
        if isinstance(self.data, CanMix) and self.data.mixing is not None:
            raise ValueError(
                f"mixing of data is of its training images, which are not read, got {self.data.mixing}: "
                f"{self.mixing_instead}"
            )
        self.data.forgo_training_set()
        self.data.trainer = self.trainer
        self.data.setup(stage)

    def teardown(self, stage: str) -> None:
        """As the data set does."""
        self.data.teardown(stage)
        super().teardown(stage)

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes in the order of their indices; known after `setup`."""
        return self.data.classes

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel that the images are normalised by, in units of [0, 1]."""
        return self.data.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel that the images are normalised by, in units of [0, 1]."""
        return self.data.std

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a view."""
        return self.data.image_shape

    @property
    def train_targets(self) -> Tensor:
        """Nothing: the training images have no classes.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"a loss asks for the classes of the training images, and {self.unlabelled}")
