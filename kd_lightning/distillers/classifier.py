"""Supervised training: how baselines and teachers are made."""

from collections.abc import Set
from typing import Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from kd_lightning.batch import Batch
from kd_lightning.distillers.base import Distiller
from kd_lightning.distillers.criteria import Term
from kd_lightning.distillers.fully_sharded import shard_trained
from kd_lightning.distillers.optimizing import Decayed
from kd_lightning.losses import CrossEntropy
from kd_lightning.losses.base import Loss
from kd_lightning.models import NetworkLike, Outputs, Views


class Classifier(Distiller):
    """A student that learns from the labels alone.

    Args:
        student: A recipe (in Python also a module).
        optimizer: Makes the optimizer from parameter groups.
        scheduler: Makes a learning-rate schedule from the optimizer; None keeps the rate.
        scheduler_interval: Whether the schedule advances with epochs or with optimizer steps.
        loss: What the labels are matched by; None for `CrossEntropy` without label smoothing.
        weight_decay_on: ``all`` parameters, or ``matrices`` only (no biases and norms, as timm does).
        num_classes: Only where no data module says it.
        channels_last: Keep the student's maps in channels_last.
    """

    def __init__(
        self,
        student: NetworkLike,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        loss: Loss | nn.Module | None = None,
        weight_decay_on: Decayed = "all",
        num_classes: int | None = None,
        channels_last: bool = True,
    ) -> None:
        super().__init__(
            student,
            {"ce": Term(CrossEntropy() if loss is None else loss, teacher=None)},
            optimizer,
            scheduler,
            scheduler_interval,
            weight_decay_on,
            num_classes,
            channels_last,
        )

    @property
    def present_teacher(self) -> None:
        """Nobody teaches."""

    def prepare(self, num_classes: int, views: Views) -> None:
        """Nobody to set up."""

    def shard(self) -> None:
        """Spread the student over the ranks."""
        shard_trained(self._student(), self.criteria, self.trainer.strategy)

    def teach(self, batch: Batch, views: Set[str]) -> dict[str, Outputs]:
        """Nobody answers."""
        return {}
