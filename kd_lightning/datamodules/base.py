"""What every image data module offers: classes, normalisation, a validation split, loaders of named views."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from kd_lightning.batch import Batch
from kd_lightning.datamodules.loader import Loader
from kd_lightning.datamodules.plan import EpochPlan
from kd_lightning.seeds import hashed, run_seed

Split = Literal["train", "val", "test"]


def held_out(count: int, fraction: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of the training and of the validation part, a fixed choice for a seed; both int64, ascending.

    Args:
        count: Rows of the full training set.
        fraction: Share that is held out, in [0, 1).
        seed: Of the split alone: runs that differ in their training seed validate on the same samples.
    """
    rows = torch.arange(count)
    by_hash = torch.sort(hashed(seed, "validation split", rows), stable=True).indices
    size = round(count * fraction)
    return by_hash[size:].sort().values, by_hash[:size].sort().values


class ImageDataModule(pl.LightningDataModule, ABC):
    """Images with labels, served as named views in global batches.

    Args:
        global_batch_size: Samples per optimizer step over all devices; the per-device batch is derived from it.
        eval_batch_size: Samples per evaluation step over all devices; ``global_batch_size`` by default.
        val_fraction: Share of the training set that is held out for validation, in [0, 1). With 0 there is no
            validation during training, unless ``validate_on_test``.
        validate_on_test: Validate on the official test set during training, as the published protocols do. What is
            then chosen by ``val/top1`` was chosen on the test set: report the last epoch.
        drop_last: Drop a last training batch that is smaller than the others.
        repeats: Views of one sample in an epoch (repeated augmentation).
        seed: Of order and views; None takes the run's (``seed_everything``).

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        global_batch_size: int,
        *,
        eval_batch_size: int | None = None,
        val_fraction: float = 0.0,
        validate_on_test: bool = False,
        drop_last: bool = False,
        repeats: int = 1,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction must be in [0, 1), got {val_fraction}")
        if validate_on_test and val_fraction > 0:
            raise ValueError(f"validate_on_test needs val_fraction 0, got {val_fraction}: choose one validation set")
        for name, value in {"global_batch_size": global_batch_size, "eval_batch_size": eval_batch_size}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        self.global_batch_size = global_batch_size
        self.eval_batch_size = eval_batch_size or global_batch_size
        self.val_fraction, self.validate_on_test, self.drop_last = val_fraction, validate_on_test, drop_last
        self.repeats, self.seed = repeats, seed
        self.reads_training_set = True
        self._views: int | None = None

    def forgo_training_set(self) -> None:
        """Let `setup` read the test set alone: the classes come from it, and there is nothing else to train on.

        Raises:
            ValueError: if the validation set is a part of the training set.
        """
        if self.val_fraction > 0:
            raise ValueError(
                f"val_fraction must be 0 where the training set is not read, got {self.val_fraction}: the validation "
                "split would be held out of it; set validate_on_test to true, or do without validation"
            )
        self.reads_training_set = False

    @property
    @abstractmethod
    def classes(self) -> Sequence[str]:
        """Names of the classes in the order of their indices; known after `setup`."""

    @property
    @abstractmethod
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel that the images are normalised by, in units of [0, 1]."""

    @property
    @abstractmethod
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel that the images are normalised by, in units of [0, 1]."""

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a view."""

    @property
    @abstractmethod
    def train_targets(self) -> Tensor:
        """Class indices of the full training set by row, int64 ``[M]``; known after `setup`."""

    @abstractmethod
    def rows(self, split: Split) -> Tensor:
        """Row numbers of the samples of a split, int64, in the full training or test set."""

    @abstractmethod
    def loader(self, split: Split, plan: EpochPlan, device: torch.device) -> Loader:
        """The loader of a split; ``plan.train`` says whether its views are augmented."""

    @property
    def num_classes(self) -> int:
        """Number of classes; known after `setup`."""
        return len(self.classes)

    def samples(self) -> int:
        """Rows of the full training set, which a batch's index counts; known after `setup`."""
        return len(self.train_targets)

    def training_rows(self) -> Tensor:
        """Row numbers of the samples that are trained on, int64."""
        return self.rows("train")

    def view_names(self) -> Sequence[str]:
        """Names of the views."""
        return ["default"]

    def view_facts(self) -> dict[str, str]:
        """All that the pixels and targets of a training view depend on beside its name.

        Raises:
            ValueError: if that cannot be said.
        """
        return {
            "data": type(self).__name__,
            "data.normalisation": f"mean {self.mean}, std {self.std}",
            "data.repeats": str(self.repeats),
            "data.seed": str(self._seed()),
        } | self.pixel_facts()

    def pixel_facts(self) -> dict[str, str]:
        """Of `view_facts`, what a kind of data knows of its images and of how it augments them.

        Raises:
            ValueError: if views depend on more than their names.
        """
        raise ValueError(f"{type(self).__name__} does not say what its views depend on: give it a method pixel_facts")

    def repeat_views_after(self, epochs: int) -> None:
        """Show the views of the first so many epochs again and again; the order goes on changing.

        Raises:
            ValueError: if it is less than 1.
        """
        if epochs < 1:
            raise ValueError(f"views must be >= 1, got {epochs}")
        self._views = epochs

    def _seed(self) -> int:
        seed = run_seed() if self.seed is None else self.seed
        return self.trainer.strategy.broadcast(seed) if self.trainer else seed

    def plan(self, split: Split, train: bool) -> EpochPlan:
        """The epochs of a split on this rank."""
        trainer = self.trainer
        plan = EpochPlan(
            self.rows(split),
            self.global_batch_size if train else self.eval_batch_size,
            seed=self._seed(),
            train=train,
            repeats=self.repeats if train else 1,
            drop_last=self.drop_last and train,
            rank=trainer.global_rank if trainer else 0,
            world=trainer.world_size if trainer else 1,
        )
        if train and self._views is not None:
            plan.repeat_views_after(self._views)
        return plan

    def _loader(self, split: Split, train: bool = False) -> Loader:
        plan = self.plan(split, train)
        if plan.dropped and train:
            pl.utilities.rank_zero_info(f"The last batch of an epoch, {plan.dropped} samples, is dropped.")
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        return self.loader(split, plan, device)

    def train_dataloader(self) -> Loader:
        """Augmented views of the training split, shuffled anew in each epoch."""
        return self._loader("train", train=True)

    def val_dataloader(self) -> Loader | list[Loader]:
        """The validation set as it is; nothing where there is none."""
        if self.validate_on_test:
            return self._loader("test")
        return self._loader("val") if self.val_fraction > 0 else []

    def test_dataloader(self) -> Loader:
        """The official test set as it is."""
        return self._loader("test")

    def predict_dataloader(self) -> Loader:
        """The official test set as it is."""
        return self._loader("test")

    def teardown(self, stage: str) -> None:
        """The next training has views of its own."""
        if stage == "fit":
            self._views = None

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """A batch that was made on its device stays as it is, without a look at each of its tensors."""
        if isinstance(batch, Batch) and batch.target.device == device:
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)
