"""The strategy of a run that names none by its class: DDP with bucket views, and a static graph where it is one."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import DDPStrategy, Strategy

from kd_lightning.distillers import Classifier, DeiTDistiller, FullySharded, OfflineDistiller
from kd_lightning.distillers.criteria import Term
from kd_lightning.distillers.schedules import Constant
from kd_lightning.losses.base import Loss

ONE_GRAPH = (Classifier, DeiTDistiller, OfflineDistiller)  # schemes in which every step has the same graph
WITH_DDP = frozenset({"auto", "cpu", "cuda", "gpu"})  # accelerators on which `auto` means DDP for several devices


def is_static(term: Term) -> bool:
    """Whether a term reaches the same parameters in every step.

    It does not where its weight follows the epochs, or its loss does; of a module that is no `Loss`, nobody knows.
    """
    return isinstance(term.schedule(), Constant) and isinstance(term.loss, Loss) and "epoch" not in term.loss.needs


def has_static_graph(module: pl.LightningModule) -> bool:
    """Whether a module's every training step reaches the same parameters: true only where that is known."""
    if not isinstance(module, ONE_GRAPH) or type(module) not in ONE_GRAPH or not module.automatic_optimization:
        return False
    return all(is_static(term) for term in module.criteria.terms.values())


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
    the buckets that are reduced, and which learns the order of the gradients once where the graph is static and no
    gradients are accumulated. All else stays as stated.

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
    return DDPStrategy(gradient_as_bucket_view=True, static_graph=static)
