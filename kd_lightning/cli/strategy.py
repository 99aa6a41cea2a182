"""The strategy of a run that names none by its class: DDP that says no more than it must."""

from collections.abc import Mapping
from typing import Any, TypeGuard

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import nn

from kd_lightning.distillers import Classifier, DeiTDistiller, FullySharded, OfflineDistiller, QuietDDP
from kd_lightning.distillers.criteria import Term
from kd_lightning.distillers.schedules import Constant
from kd_lightning.losses.base import Loss
from kd_lightning.models import EnsembleTeacher, FrozenTeacher, StoredOutputs, Teacher

WITH_DDP = frozenset({"auto", "cpu", "cuda", "gpu"})  # accelerators on which `auto` means DDP for several devices


def is_plain(module: pl.LightningModule) -> TypeGuard[Classifier | DeiTDistiller | OfflineDistiller]:
    """Whether a module is of a scheme in which one loss of one student is all; what a subclass does, nobody knows."""
    return type(module) in (Classifier, DeiTDistiller, OfflineDistiller)


def is_ours(loss: nn.Module) -> TypeGuard[Loss]:
    """Whether a loss is of this package, whose ways are known."""
    return isinstance(loss, Loss) and type(loss).__module__.partition(".")[0] == "kd_lightning"


def is_static(term: Term) -> bool:
    """Whether a term reaches the same parameters in every step.

    It does not where its weight follows the epochs, or its loss does; of a loss of somebody else's, nobody knows.
    """
    return isinstance(term.schedule(), Constant) and is_ours(term.loss) and "epoch" not in term.loss.needs


def has_static_graph(module: pl.LightningModule) -> bool:
    """Whether a scheme's every training step reaches the same parameters of a student that always does the same.

    True only where that is known of the scheme and its terms. For a student that leaves out layers at random,
    by control flow, state the strategy by its class.
    """
    if not is_plain(module) or not module.automatic_optimization:
        return False
    return all(is_static(term) for term in module.criteria.terms.values())


def may_change(teacher: Teacher | None) -> bool:
    """Whether a teacher's answers may depend on the student's training: false only where that is known."""
    if isinstance(teacher, EnsembleTeacher):
        return any(may_change(member) for member in teacher.teachers.values())
    return not (teacher is None or isinstance(teacher, FrozenTeacher | StoredOutputs))


def may_be_quiet(module: pl.LightningModule) -> bool:
    """Whether no network in evaluation mode follows the student: true only where that is known."""
    return is_plain(module) and (isinstance(module, Classifier) or not may_change(module.teacher))


def accumulates(trainer: Mapping[str, Any]) -> bool:
    """Whether a step of the optimizer may follow several backward passes.

    With a static graph, torch (2.14) fails where the first of them is not followed by an exchange.
    """
    callbacks = trainer.get("callbacks") or []
    listed = callbacks if isinstance(callbacks, list | tuple) else [callbacks]
    scheduled = any(isinstance(callback, GradientAccumulationScheduler) for callback in listed)
    return scheduled or int(trainer.get("accumulate_grad_batches", 1)) > 1


def several_devices(devices: object, accelerator: object, nodes: int) -> bool:
    """Whether Lightning will start several processes.

    Args:
        devices: As Lightning takes them: a number, a list of indices, either as text, -1 or ``auto``.
        accelerator: As Lightning takes it.
        nodes: How many there are.
    """
    if nodes > 1:
        return True
    if isinstance(devices, list | tuple):
        return len(devices) > 1
    if isinstance(devices, str) and "," in devices:
        return len([index for index in devices.split(",") if index.strip()]) > 1
    if str(devices) in {"auto", "-1"}:
        return accelerator != "cpu" and torch.cuda.device_count() > 1
    return int(str(devices)) > 1


def chosen(trainer: Mapping[str, Any], module: pl.LightningModule) -> Strategy | str:
    """What to give Lightning for the strategy that was stated.

    ``fsdp`` becomes `FullySharded`; ``ddp``, and ``auto`` on several devices, become DDP whose gradients are views of
    the buckets that are reduced, which learns the order of the gradients once where the graph is static and no
    gradients are accumulated, and which exchanges no statistics of BatchNorm where no network in evaluation mode
    follows the student (`QuietDDP`). All else stays as stated.

    Args:
        trainer: What was stated for Lightning's trainer.
        module: That is trained.
    """
    stated: Strategy | str = trainer.get("strategy", "auto")
    accelerator, nodes = trainer.get("accelerator", "auto"), int(trainer.get("num_nodes", 1))
    if stated == "fsdp":
        return FullySharded()
    several = several_devices(trainer.get("devices", "auto"), accelerator, nodes)
    if stated != "ddp" and not (stated == "auto" and accelerator in WITH_DDP and several):
        return stated
    static = has_static_graph(module) and not accumulates(trainer)
    if may_be_quiet(module):
        return QuietDDP(static_graph=static)
    return DDPStrategy(gradient_as_bucket_view=True, static_graph=static)
