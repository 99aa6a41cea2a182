"""An exponential moving average of the student's weights."""

import copy
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from kd_lightning.distillers.codistillation import TrainsInGroups
from kd_lightning.models.evaluated import AVERAGE, EVALUATED
from kd_lightning.models.moving_average import move_towards
from kd_lightning.models.sharding import is_sharded


class Average(nn.Module):
    """A copy of a network that moves towards it.

    Args:
        network: It starts as this one is.
        decay: What is kept of it in a move, in [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.module = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay

    def move(self, network: nn.Module) -> None:
        """Move towards the network."""
        move_towards(self.module, network, 1 - self.decay)


class StudentEMA(pl.Callback):
    """Keeps theta_ema <- decay theta_ema + (1 - decay) theta after each optimizer step, of the student alone.

    The average is in the checkpoint under a key of its own; the student's weights stay what they were. Validation and
    test look at the average where ``evaluate`` says so, and of a checkpoint at the checkpoint's; whoever names the run
    as ``weights`` then gets the average too. Buffers are averaged where they are floating point; others are the
    student's.

    Args:
        decay: In [0, 1); 0.9999 is usual for ImageNet, 0.999 or less for short trainings.
        evaluate: Whether the average stands in for the student in validation, test and prediction.

    Raises:
        ValueError: if ``decay`` is out of range.
    """

    def __init__(self, decay: float = 0.9999, evaluate: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay, self.evaluate = decay, evaluate
        self.average: Average | None = None
        self._steps = 0
        self._restored: dict[str, Any] | None = None
        self._own: dict[str, torch.Tensor] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget what an earlier training or test has left, before a training."""
        if stage == "fit":
            self.average = self._restored = None

    def _build(self, module: pl.LightningModule) -> Average:
        student = module.student
        if not isinstance(student, nn.Module):
            raise ValueError(f"{type(module).__name__} has no student to average")
        if is_sharded(student):
            raise ValueError(
                "StudentEMA cannot average a student that fsdp spreads over ranks: leave it out, or take ddp"
            )
        average = Average(student, self.decay)
        if self._restored is not None:
            average.load_state_dict(self._restored)
            self._restored = None
        return average

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start from the student as it is, or from the checkpoint's average.

        Raises:
            ValueError: if other processes train parts of the student, whose every step this one does not see.
        """
        if isinstance(pl_module, TrainsInGroups) and (elsewhere := pl_module.trained_elsewhere()):
            raise ValueError(
                f"StudentEMA cannot average {elsewhere[0]}, which another process trains: leave it out with "
                "Codistillation over several processes"
            )
        self.average = self._build(pl_module)
        self._steps = trainer.global_step

    def stand_in(self, module: pl.LightningModule) -> nn.Module | None:
        """The average, if it is what is evaluated; also that of a checkpoint whose training does not go on."""
        self._take_up(module)
        return self.average.module if self.average is not None and self.evaluate else None

    def restart(self, module: pl.LightningModule) -> None:
        """Start from the student as it is: a new generation."""
        self._restored = None
        self.average = self._build(module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the average, if the student has moved."""
        if self.average is not None and trainer.global_step != self._steps:
            self._steps = trainer.global_step
            self.average.move(self._student(pl_module))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the average beside the student's state, and whether it is what is evaluated."""
        if self.average is not None:
            checkpoint[AVERAGE], checkpoint[EVALUATED] = self.average.state_dict(), self.evaluate

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take up the average.

        Raises:
            ValueError: if the checkpoint has none, as the average would silently start anew.
        """
        if AVERAGE not in checkpoint:
            raise ValueError("the checkpoint holds no average of the student: it was made without StudentEMA")
        self._restored = checkpoint[AVERAGE]

    @staticmethod
    def _student(module: pl.LightningModule) -> nn.Module:
        student = module.student
        if not isinstance(student, nn.Module):
            raise ValueError(f"{type(module).__name__} has no student")
        return student

    def _take_up(self, module: pl.LightningModule) -> None:
        if self._restored is not None:
            self.average = self._build(module)

    def _swap_in(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:  # else the training takes it up when it starts
            self._take_up(module)
        if self.average is not None and self.evaluate:
            student = self._student(module)
            self._own = {key: value.clone() for key, value in student.state_dict().items()}
            student.load_state_dict(self.average.module.state_dict())

    def _swap_out(self, module: pl.LightningModule) -> None:
        if self._own is not None:
            self._student(module).load_state_dict(self._own)
            self._own = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The average stands in."""
        self._swap_in(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The student is back."""
        self._swap_out(pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The average stands in."""
        self._swap_in(trainer, pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The student is back."""
        self._swap_out(pl_module)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The average stands in."""
        self._swap_in(trainer, pl_module)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The student is back."""
        self._swap_out(pl_module)
