"""Offline distillation: a teacher that was trained before, or the student's own average, or none at all."""

from collections.abc import Set
from typing import Any, Literal, cast

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from kd_lightning.batch import Batch, as_batch
from kd_lightning.distillers.base import Distiller
from kd_lightning.distillers.criteria import Term
from kd_lightning.distillers.fully_sharded import mesh_of, shard_trained
from kd_lightning.distillers.knn import NearestNeighbours, training_images
from kd_lightning.distillers.optimizing import Decayed
from kd_lightning.distillers.teaching import (
    OF_THE_TEACHER,
    answers,
    begin,
    examine_first,
    known_of,
    require_question,
    set_up,
)
from kd_lightning.distillers.unlabelled import check_unlabelled
from kd_lightning.models import NetworkLike, Outputs, TapPlan, Teacher, Views

TEACHER = "teacher"  # the key of what is trained of the teacher in a checkpoint


class OfflineDistiller(Distiller):
    """A student that learns from a teacher's answers to the very images that it sees, and from the labels.

    The teacher is no part of this module's state: not in its checkpoints, optimizer, or train mode. What is trained of
    one, as of a `MovingAverageTeacher`, is in the checkpoint under a key of its own; it is told of each optimizer step.

    Args:
        student: A recipe (in Python also a module).
        teacher: Who answers, for instance a `FrozenTeacher`; null for nobody, as where a virtual teacher is a loss
            (`TeacherFree`).
        criteria: Name -> term; their weighted sum is the loss.
        optimizer: Makes the optimizer from parameter groups.
        scheduler: Makes a learning-rate schedule from the optimizer; None keeps the rate.
        scheduler_interval: Whether the schedule advances with epochs or with optimizer steps.
        weight_decay_on: ``all`` parameters, or ``matrices`` only (no biases and norms, as timm does).
        num_classes: Only where no data module says it.
        channels_last: Keep the student's maps in channels_last.
        knn: Also measure the student's features by the nearest training images, in validation.
    """

    def __init__(
        self,
        student: NetworkLike,
        teacher: Teacher | None,
        criteria: dict[str, Term],
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        weight_decay_on: Decayed = "all",
        num_classes: int | None = None,
        channels_last: bool = True,
        knn: NearestNeighbours | None = None,
    ) -> None:
        super().__init__(
            student, criteria, optimizer, scheduler, scheduler_interval, weight_decay_on, num_classes, channels_last
        )
        self.teacher, self.knn = teacher, knn
        if teacher is not None:
            require_question(self.criteria)
        elif asking := [name for name, term in self.criteria.terms.items() if term.teacher_taps()]:
            raise ValueError(f"criteria.{asking[0]} asks the teacher, but teacher is null: give one, or leave it out")

    @property
    def present_teacher(self) -> Teacher | None:
        """The teacher, if there is one, answers in the test too."""
        return self.teacher

    def prepare(self, num_classes: int, views: Views) -> TapPlan | None:
        """Set up the teacher with the taps that the criteria ask for."""
        if self.knn is not None:
            self.knn.prepare(self._student(), views.image_shape, num_classes)
        if self.teacher is None:
            return None
        self.teacher.follow(self._student())
        return set_up(self.teacher, self.criteria, num_classes, views)

    def shard(self) -> None:
        """Spread the student, the adapters and the teacher over the ranks.

        Raises:
            ValueError: if one of them cannot be spread, or neighbours are asked for.
        """
        if self.knn is not None:
            raise ValueError("knn asks each rank for other images at other times, which fsdp does not allow: take ddp")
        strategy = self.trainer.strategy
        shard_trained(self._student(), self.criteria, strategy)
        if self.teacher is not None:
            self.teacher.shard(mesh_of(strategy))

    def fact(self, need: str, term: Term) -> object:
        """What a loss needs to know of the teacher, or of the run.

        Raises:
            ValueError: if it is not known.
        """
        if self.teacher is not None and need in OF_THE_TEACHER:
            return known_of(self.teacher, need, term)
        return super().fact(need, term)

    def on_fit_start(self) -> None:
        """Bring the teacher to the student's device, and tell the losses what they need to know."""
        if self.teacher is not None:
            begin(self.teacher, self.trainer, self.device)
        super().on_fit_start()

    def on_test_start(self) -> None:
        """Bring the teacher to the student's device."""
        if self.teacher is not None:
            self.teacher.to(self.device)

    def on_train_start(self) -> None:
        """Show the teacher's top-1, and stop here if it knows nothing.

        Raises:
            ValueError: if it is near chance, or not what it is expected to be.
        """
        if self.teacher is None:
            return
        self._steps = self.trainer.estimated_stepping_batches
        if self.global_step == 0:
            self.teacher.follow(self._student())
        check_unlabelled(self.trainer, self.criteria, self.teacher)
        examine_first(self.teacher, self.trainer, cast(int, self.num_classes), self._over_ranks)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """A step of the optimizer, of which the teacher is told before any checkpoint of it can be written."""
        super().optimizer_step(*args, **kwargs)
        if self.teacher is not None:
            self.teacher.advance(self._student(), self.global_step, self._steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained of the teacher, if anything is."""
        super().on_save_checkpoint(checkpoint)
        if self.teacher is not None and (state := self.teacher.state()) is not None:
            checkpoint[TEACHER] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what is trained of the teacher.

        Raises:
            ValueError: if the checkpoint was made with another kind of teacher.
        """
        super().on_load_checkpoint(checkpoint)
        if self.teacher is not None:
            self.teacher.restore(checkpoint.get(TEACHER))

    def on_validation_epoch_start(self) -> None:
        """Remember the training images, where their neighbours are asked for."""
        if self.knn is not None and not self.trainer.sanity_checking:
            shown = training_images(getattr(self.trainer, "datamodule", None), self.device)
            strategy, precision = self.trainer.strategy, self.trainer.precision_plugin
            moved = (precision.convert_input(strategy.batch_to_device(batch, dataloader_idx=0)) for batch in shown)
            with precision.val_step_context():
                self.knn.remember(self._student(), map(as_batch, moved))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Take in the student's answers, and those of the nearest training images."""
        super().validation_step(batch, batch_idx)
        if self.knn is not None:
            self.knn.update(self._student(), as_batch(batch))

    def on_validation_epoch_end(self) -> None:
        """Log the student's figures as ``val/*``."""
        super().on_validation_epoch_end()
        if self.knn is not None and (figures := self.knn.compute()):
            self._log_figures("val", figures)

    def teach(self, batch: Batch, views: Set[str]) -> dict[str, Outputs]:
        """The teacher's answer to each of these views; see `answers`."""
        if self.teacher is None:
            return {}
        return answers(self.teacher, batch, views, self.trainer.training)
