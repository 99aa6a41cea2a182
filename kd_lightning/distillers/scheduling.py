"""An optimizer with its learning-rate schedule, checked against what a checkpoint is about to restore over them."""

from collections.abc import Callable
from typing import Any, Literal, cast

import lightning.pytorch as pl
from lightning.pytorch.cli import LRSchedulerCallable, ReduceLROnPlateau
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer

from kd_lightning.distillers.learning_rate import StretchedToTraining
from kd_lightning.distillers.optimizing import check_unchanged, lay_out_as_parameters, quicken


def epochs_in(trainer: pl.Trainer) -> int | None:
    """The whole training in epochs; None where the trainer does not say, as where only ``max_steps`` is given."""
    epochs = trainer.max_epochs
    return None if epochs is None or epochs < 1 else epochs


def length_of(trainer: pl.Trainer, interval: Literal["epoch", "step"]) -> int:
    """The whole training in epochs or optimizer steps.

    Raises:
        ValueError: if the trainer does not say how many epochs there are.
    """
    if interval == "step":
        return int(trainer.estimated_stepping_batches)
    if (epochs := epochs_in(trainer)) is None:
        raise ValueError(
            f"a schedule stated in shares of the training needs trainer.max_epochs >= 1, got {trainer.max_epochs}"
        )
    return epochs


def scheduled(
    optimizer: Optimizer,
    make_scheduler: LRSchedulerCallable | None,
    interval: Literal["epoch", "step"],
    length: Callable[[], int],
    restored: dict[str, Any] | None,
) -> OptimizerLRScheduler:
    """What Lightning takes from ``configure_optimizers``.

    Args:
        optimizer: Fresh.
        make_scheduler: Makes a learning-rate schedule from it; None keeps the rate.
        interval: Whether the schedule advances with epochs or with optimizer steps.
        length: The whole training in these intervals; asked only by a schedule that is stated in shares of it.
        restored: States of optimizers and schedules of a checkpoint that is being resumed, if any.

    Raises:
        ValueError: if the checkpoint was made with other settings.
    """
    quicken(optimizer)
    optimizer.register_load_state_dict_post_hook(lay_out_as_parameters)
    scheduler = make_scheduler(optimizer) if make_scheduler is not None else None
    if isinstance(scheduler, StretchedToTraining):
        scheduler.stretch(length())
    if restored is not None:
        _compare(optimizer, scheduler, restored)
    if scheduler is None:
        return optimizer
    schedule: dict[str, Any] = {"scheduler": scheduler, "interval": interval}
    if isinstance(scheduler, ReduceLROnPlateau):
        schedule["monitor"] = scheduler.monitor
    return cast(OptimizerLRScheduler, {"optimizer": optimizer, "lr_scheduler": schedule})


def check_restored(trainer: pl.Trainer, restored: dict[str, Any]) -> None:
    """Where the optimizer is made before a checkpoint is read, compare it with the checkpoint's, and the schedule.

    Raises:
        ValueError: if the checkpoint was made with other settings.
    """
    if not trainer.strategy.restore_checkpoint_after_setup:
        return
    configs = trainer.strategy.lr_scheduler_configs
    for optimizer in trainer.strategy.optimizers:
        _compare(optimizer, configs[0].scheduler if configs else None, restored)


def _compare(optimizer: Optimizer, scheduler: object, restored: dict[str, Any]) -> None:
    plateau = isinstance(scheduler, ReduceLROnPlateau)
    schedules = [] if plateau else restored["lr_schedulers"]
    check_unchanged(optimizer, None if plateau else cast(Any, scheduler), restored["optimizer_states"], schedules)
