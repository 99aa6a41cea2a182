"""Offline distillation: a teacher that was trained before, and does not change."""

import copy
from collections.abc import Iterable
from typing import Literal, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info

from kd_lightning.batch import Batch
from kd_lightning.distillers.base import Distiller
from kd_lightning.distillers.criteria import Term
from kd_lightning.distillers.examination import examine, judge
from kd_lightning.distillers.optimizing import Decayed
from kd_lightning.models import NetworkLike, Outputs, TapPlan, Teacher, Views


class OfflineDistiller(Distiller):
    """A student that learns from a teacher's answers to the very images that it sees, and from the labels.

    The teacher is no part of this module's state: not in its checkpoints, optimizer, or train mode.

    Args:
        student: A recipe (in Python also a module).
        teacher: Who answers, for instance a `FrozenTeacher`.
        criteria: Name -> term; their weighted sum is the loss.
        optimizer: Makes the optimizer from parameter groups.
        scheduler: Makes a learning-rate schedule from the optimizer; None keeps the rate.
        scheduler_interval: Whether the schedule advances with epochs or with optimizer steps.
        weight_decay_on: ``all`` parameters, or ``matrices`` only (no biases and norms, as timm does).
        num_classes: Only where no data module says it.
        channels_last: Keep the student's maps in channels_last.
    """

    def __init__(
        self,
        student: NetworkLike,
        teacher: Teacher,
        criteria: dict[str, Term],
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        weight_decay_on: Decayed = "all",
        num_classes: int | None = None,
        channels_last: bool = True,
    ) -> None:
        super().__init__(
            student, criteria, optimizer, scheduler, scheduler_interval, weight_decay_on, num_classes, channels_last
        )
        self.teacher = teacher
        if not self.criteria.teacher_taps():
            raise ValueError("no term of criteria asks the teacher: add one, or train a Classifier")

    @property
    def has_teacher(self) -> bool:
        """The teacher answers in the test too."""
        return True

    def prepare(self, num_classes: int, views: Views) -> TapPlan:
        """Set up the teacher with the taps that the criteria ask for."""
        self.teacher.setup(num_classes, views, self.criteria.teacher_taps())
        return self.teacher.plan()

    def fact(self, need: str, term: Term) -> object:
        """What a loss needs to know of the teacher, or of the run.

        Raises:
            ValueError: if it is not known.
        """
        if need == "teacher_classifier":
            return self.teacher.classifier()
        if need == "teacher_norms":
            return [norm for tap in term.teacher_taps() for norm in self.teacher.norms(tap)]
        return super().fact(need, term)

    def on_fit_start(self) -> None:
        """Bring the teacher to the student's device, and tell the losses what they need to know."""
        self.teacher.to(self.device)
        super().on_fit_start()

    def on_test_start(self) -> None:
        """Bring the teacher to the student's device."""
        self.teacher.to(self.device)

    def on_train_start(self) -> None:
        """Show the teacher's top-1, and stop here if it knows nothing.

        Raises:
            ValueError: if it is near chance, or not what it is expected to be.
        """
        if self.teacher.check is False:
            return
        loaders = self.trainer.val_dataloaders or self.trainer.train_dataloader
        loader = copy.copy(loaders[0] if isinstance(loaders, list) else loaders)  # the training's own keeps its place
        with torch.random.fork_rng():  # a shuffling DataLoader draws from the global generator
            top1, images = examine(self.teacher, cast(Iterable[object], loader), self._moved, self._over_ranks)
        rank_zero_info(f"teacher: top-1 {top1:.4f} on {images} images")
        judge(self.teacher, top1, images, self.num_classes or 0)

    def _moved(self, batch: object) -> object:
        moved: object = self.trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        return moved

    def teach(self, batch: Batch, views: set[str]) -> dict[str, Outputs]:
        """The teacher's answer to each of these views."""
        return {view: self.teacher(batch, view) for view in sorted(views)}
