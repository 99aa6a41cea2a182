"""No training images: only the names of images that somebody else will make, and the test set of a data set."""

from collections.abc import Iterator

import torch
from torch import Tensor

from kd_lightning.batch import Batch
from kd_lightning.datamodules.base import ImageDataModule, Split
from kd_lightning.datamodules.borrowed import BorrowedDataModule
from kd_lightning.datamodules.loader import Loader
from kd_lightning.datamodules.plan import EpochPlan


class NamesLoader(Loader):
    """Batches without images: ``index`` and ``number`` name what is to be made, the target is 0."""

    def fetch(self, position: int) -> Iterator[Batch]:
        """The batches of the plan's epoch from ``position`` on."""
        for rows, numbers in self.plan.batches_from(position, self.device):
            yield Batch({}, torch.zeros_like(rows), rows, numbers)


class NoTrainingImages(BorrowedDataModule):
    """Classes, shape, normalisation, validation and test of a data set whose training images are never read.

    An epoch is ``steps_per_epoch`` batches of names: ``index`` in 0 … steps x batch - 1, and the epoch as ``number``. A
    name is of one image, whatever the number of ranks.

    Args:
        data: Whose test set is read; ``val_fraction`` 0.
        steps_per_epoch: Batches in an epoch.
        global_batch_size: Images per optimizer step over all devices.
        seed: Of the order of the names; None takes the run's.

    Raises:
        ValueError: if an argument is out of range.
    """

    unlabelled = "there are none"
    mixing_instead = "leave it out, as generated images are not mixed"

    def __init__(
        self, data: ImageDataModule, steps_per_epoch: int, global_batch_size: int = 256, seed: int | None = None
    ) -> None:
        super().__init__(data, global_batch_size, seed=seed)
        if steps_per_epoch < 1:
            raise ValueError(f"steps_per_epoch must be >= 1, got {steps_per_epoch}")
        self.steps_per_epoch = steps_per_epoch

    def rows(self, split: Split) -> Tensor:
        """Row numbers of a split, int64; of the training the indices of the names."""
        if split == "train":
            return torch.arange(self.steps_per_epoch * self.global_batch_size)
        return self.data.rows(split)

    def loader(self, split: Split, plan: EpochPlan, device: torch.device) -> Loader:
        """The data set's own loader, of names for the training."""
        return NamesLoader(plan, device) if split == "train" else self.data.loader(split, plan, device)
