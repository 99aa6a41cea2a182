"""What every training scheme shares: one student, criteria, an optimizer, and the evaluation of the student."""

from abc import ABC, abstractmethod
from collections.abc import Sequence, Set
from itertools import chain
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from kd_lightning.batch import Batch, as_batch, check_labels
from kd_lightning.distillers.building import built
from kd_lightning.distillers.criteria import Criteria, Term
from kd_lightning.distillers.data_facts import classes_of, train_targets_of, views_of
from kd_lightning.distillers.evaluating import log_figures, take_in
from kd_lightning.distillers.meter import TermMeter, due
from kd_lightning.distillers.metrics import Evaluations
from kd_lightning.distillers.nonfinite import FiniteWatch
from kd_lightning.distillers.optimizing import Decayed, parameter_groups
from kd_lightning.distillers.scheduling import check_restored, epochs_in, length_of, scheduled
from kd_lightning.distillers.shares import share_of
from kd_lightning.distillers.tap_table import tap_table
from kd_lightning.distillers.unreached import Unreached
from kd_lightning.models import NetworkLike, Outputs, Teacher, Views
from kd_lightning.models.evaluated import STUDENT, below
from kd_lightning.models.memory_format import memory_format
from kd_lightning.models.tap_plan import TapPlan, classifier_of, plan, several
from kd_lightning.models.taps import LOGITS, tapped
from kd_lightning.models.weights import matched
from kd_lightning.ranks import summed
from kd_lightning.seeds import hashed_int, run_seed, seed_torch


class Distiller(pl.LightningModule, ABC):
    """Trains one student by criteria. A scheme says who answers beside the student.

    Args:
        student: A recipe (in Python also a module).
        criteria: Name -> term; their weighted sum is the loss.
        optimizer: Makes the optimizer from parameter groups.
        scheduler: Makes a learning-rate schedule from the optimizer; None keeps the rate.
        scheduler_interval: Whether the schedule advances with epochs or with optimizer steps.
        weight_decay_on: ``all`` parameters, or ``matrices`` only (no biases and norms, as timm does).
        num_classes: Only where no data module says it.
        channels_last: Keep the student's maps in channels_last, which is faster on most hardware.
    """

    def __init__(
        self,
        student: NetworkLike,
        criteria: dict[str, Term],
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        weight_decay_on: Decayed = "all",
        num_classes: int | None = None,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.compared = True  # with the teacher, in a test; a look at the student alone does without
        self._recipe = (student,)  # in a tuple, so that a module is registered once, as the student
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.scheduler_interval, self.weight_decay_on = scheduler_interval, weight_decay_on
        self.num_classes = num_classes
        self.channels_last, self.memory_format = channels_last, torch.contiguous_format
        self.criteria = Criteria(criteria)
        self.student: nn.Module | None = None
        self.meter = TermMeter([*criteria, "loss"])
        self.rate = 0.0  # of the last step; at the end of an epoch the schedule has already moved on
        self._unreached, self._watch = Unreached(), FiniteWatch()
        self._restored: dict[str, Any] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Lightning notes the hook that runs some fifty times a step: a name, which is no part of a network."""
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    # What a scheme says

    @property
    @abstractmethod
    def present_teacher(self) -> Teacher | None:
        """Who answers beside the student in the test; None for nobody."""

    @abstractmethod
    def prepare(self, num_classes: int, views: Views) -> TapPlan | None:
        """Set up whoever answers beside the student; where its taps are, None if there is nobody."""

    @abstractmethod
    def teach(self, batch: Batch, views: Set[str]) -> dict[str, Outputs]:
        """What it answers to these views of a batch."""

    def parts(self) -> Sequence[str]:
        """Names of what is examined beside the student's own answer, for instance its heads."""
        return ()

    def examined(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``[N, C]`` of the student, and of each of its parts, for the evaluation."""
        return self(image), {}

    # Building

    def configure_model(self) -> None:
        """Build the student for the data's classes, and the adapters for its shapes.

        Raises:
            ValueError: if nobody says the number of classes, or two say it differently.
        """
        if self.student is not None:
            return
        self.seed = run_seed()
        num_classes, views = classes_of(self.trainer, self.num_classes), views_of(self.trainer)
        student = self.fresh_student()
        self.memory_format = memory_format(student, self.channels_last)
        self.student = student.to(memory_format=self.memory_format)
        self._image_shape = views.image_shape
        self._plan = self.planned(self.student, views.image_shape)
        self._submodules = self._plan.submodules()
        if (classes := several(self._plan.shapes[LOGITS])[0][1]) != num_classes:
            raise ValueError(f"the student has {classes} classes, the data {num_classes}")
        self._teacher_plan = self.prepare(num_classes, views)
        self.criteria.build(self._plan, self._teacher_plan)
        self.num_classes = num_classes
        self.val_metrics = Evaluations(self.parts(), num_classes, teacher=False, full=False)
        self.test_metrics = Evaluations(self.parts(), num_classes, teacher=self.is_compared(), full=True)
        if self.device_mesh is not None:
            self.shard()

    def shard(self) -> None:
        """Spread what is trained, and who teaches, over the ranks, for the strategy `FullySharded`.

        Raises:
            ValueError: if this scheme cannot be spread.
        """
        raise ValueError(f"{type(self).__name__} cannot be trained with fsdp: take the strategy ddp")

    def planned(self, student: nn.Module, image_shape: tuple[int, int, int]) -> TapPlan:
        """Where the student's taps are."""
        return plan(student, self.criteria.student_taps(), image_shape)

    def fact(self, need: str, term: Term) -> object:
        """What a loss needs to know of the run; a scheme adds what it knows of the teacher.

        Raises:
            ValueError: if it is not known.
        """
        if need == "student_classifier":
            return classifier_of(self._student(), self._image_shape)
        if need == "train_targets":
            return train_targets_of(self.trainer)
        if need == "epochs":
            return self.schedule_epochs
        raise ValueError(f"the loss needs {need}, but {type(self).__name__} has no teacher that knows it")

    def on_fit_start(self) -> None:
        """Tell the losses what they need to know, and show what is matched with what."""
        self.criteria.inform(self.fact)
        rank_zero_info(tap_table(self.criteria, self._plan, self._teacher_plan))
        for notice in self.criteria.notices():
            rank_zero_info(notice)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimizer for the student and the adapters."""
        trained = nn.ModuleDict({"student": self._student(), "criteria": self.criteria})
        optimizer = self.make_optimizer(parameter_groups(trained, self.weight_decay_on))
        return scheduled(optimizer, self.make_scheduler, self.scheduler_interval, self._training_length, self._restored)

    def fresh_student(self) -> nn.Module:
        """Another build of the student, as it was before its training; of a module, the module itself."""
        (recipe,) = self._recipe
        return built("student", recipe, classes_of(self.trainer, self.num_classes), views_of(self.trainer))

    def _training_length(self) -> int:
        return length_of(self.trainer, self.scheduler_interval)

    def _student(self) -> nn.Module:
        if self.student is None:
            raise RuntimeError("the student is built by configure_model, when the data's classes are known")
        return self.student

    # Training

    @property
    def schedule_epoch(self) -> int:
        """The epoch, from 0, that schedules go by and steps are named by; a generation counts its own."""
        return self.current_epoch

    @property
    def schedule_epochs(self) -> int | None:
        """How many there are of them, which shares are of; None where ``trainer.max_epochs`` does not say."""
        return epochs_in(self.trainer)

    def criteria_now(self) -> Criteria:
        """What is learnt by at present."""
        return self.criteria

    def forward(self, image: Tensor) -> Tensor:
        """The student's logits ``[N, C]`` for images ``[N, C, H, W]``."""
        return cast(Tensor, self._student()(image.to(memory_format=self.memory_format)))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Name what is random inside the step (dropout, drop path) by seed, epoch, batch and rank."""
        seed_torch(hashed_int(self.seed, "step", self.schedule_epoch, batch_idx, self.global_rank))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The weighted sum of the terms, weighted by this rank's share of the global batch."""
        batch = as_batch(batch)
        if batch.index is None:
            check_labels(batch.target, self.num_classes or 0, batch_idx)
        criteria, epoch = self.criteria_now(), self.schedule_epoch
        if missing := (criteria.views() | criteria.asks_teacher(epoch)) - batch.images.keys():
            raise ValueError(f"criteria look at the views {sorted(missing)}, the batch has {sorted(batch.images)}")
        student = {view: self._answer(batch.images[view]) for view in sorted(criteria.views())}
        loss, values = criteria(student, self.teach(batch, criteria.asks_teacher(epoch)), batch, epoch)
        self._watch.note(loss, values, batch, self)
        self.rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.meter.add({**values, "loss": loss.detach()}, len(batch))
        if self.device_mesh is None:  # FSDP waits for nobody, and leaves no gradient where none came
            trained = chain(self._student().parameters(), self.criteria.parameters())
            loss = self._unreached.tied(loss, (epoch, tuple(values)), trained, self.trainer.world_size)
        return cast(Tensor, loss if self.trainer.world_size == 1 else loss * self._share(len(batch), batch_idx))

    def _answer(self, image: Tensor) -> Outputs:
        with tapped(self._student(), self._submodules) as taps:
            logits = self(image)
        return Outputs(logits, self._plan.picked(taps))

    def _share(self, samples: int, position: int) -> float | Tensor:
        """Ranks are averaged; with this factor, the average is over samples also when ranks differ in number."""
        return share_of(samples, position, self.trainer, self._over_ranks)

    def _over_ranks(self, value: Tensor) -> Tensor:
        return summed(value.to(self.device))

    def on_after_backward(self) -> None:
        """Stop if the loss was not finite; what no term reaches has no gradient, so weight decay leaves it alone."""
        self._watch.settle(self)
        self._unreached.release()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the means of the terms every ``log_every_n_steps``."""
        if due(batch_idx + 1, cast(Any, self.trainer).log_every_n_steps):
            self._log_terms()

    def on_train_epoch_end(self) -> None:
        """Log the rest of the epoch."""
        self._log_terms()

    def _log_terms(self) -> None:
        if not (means := {f"train/{name}": mean for name, mean in self.meter.read(self._over_ranks).items()}):
            return
        self._to_loggers(means | {"lr": self.rate})
        self.trainer.progress_bar_metrics.update({"loss": means["train/loss"]})
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in means.items()})

    def _to_loggers(self, figures: dict[str, float]) -> None:
        if not self.trainer.sanity_checking:
            for logger in self.loggers:
                logger.log_metrics(figures | {"epoch": self.current_epoch}, self.global_step)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the running means; the student and the adapters are in the state already, the teacher is not."""
        # Lightning saves before that hook: what is due at this step would be logged again by a resumed run.
        self.on_train_batch_end(None, None, self.trainer.fit_loop.epoch_loop.batch_idx)
        checkpoint["meter"] = self.meter.state(self._over_ranks)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the running means, and remember the settings to compare the stated ones with.

        Raises:
            ValueError: if the checkpoint's student is another network, or has another number of classes.
        """
        matched(below(checkpoint.get("state_dict"), STUDENT), self._student(), "the checkpoint")
        self.meter.restore(checkpoint.get("meter"), self.global_rank)
        if "optimizer_states" in checkpoint:
            self._restored = {key: checkpoint.get(key, []) for key in ("optimizer_states", "lr_schedulers")}
            check_restored(self.trainer, self._restored)

    # Evaluation

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Take in the student's answers; distillation terms are for training only."""
        take_in(batch, self.val_metrics, self.examined, None, self.device_mesh is not None)

    def on_validation_epoch_end(self) -> None:
        """Log the student's figures as ``val/*``."""
        self._log_figures("val", self.val_metrics.compute())

    def is_compared(self) -> bool:
        """Whether a test asks a teacher too."""
        return self.compared and self.present_teacher is not None

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        """Take in the student's answers, and the teacher's where there is one; callbacks are shown the `Answers`."""
        teach = self.teach if self.is_compared() else None
        return take_in(batch, self.test_metrics, self.examined, teach, self.device_mesh is not None)

    def on_test_epoch_end(self) -> None:
        """Log the figures as ``test/*``."""
        self._log_figures("test", self.test_metrics.compute())

    def _log_figures(self, stage: str, figures: dict[str, float]) -> None:
        log_figures(self, stage, figures, self._to_loggers)

    def predict_step(self, batch: Any, batch_idx: int) -> tuple[Tensor | None, Tensor]:
        """Rows of the samples, int64 ``[N]``, and class probabilities, float32 ``[N, C]``."""
        batch = as_batch(batch)
        return batch.index, self(batch.image).float().softmax(dim=1)
