"""The facts of a run that a person wants to know at its start: who learns, from whom, on what, and with what."""

from collections.abc import Mapping, Sized
from typing import Any, Protocol, cast, runtime_checkable

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from kd_lightning.distillers import BornAgainDistiller, DataFreeDistiller, Distiller, OnlineDistiller
from kd_lightning.distillers.data_facts import KnowsClasses, KnowsViews
from kd_lightning.distillers.formula import text
from kd_lightning.distillers.peers import Peers
from kd_lightning.models import FrozenTeacher, NamedViews, Network, Teacher


@runtime_checkable
class HasGlobalBatch(Protocol):
    """A data module that says how many images make a step over all devices."""

    global_batch_size: int


def counted(network: nn.Module) -> str:
    """The number of parameters, in words."""
    return f"{sum(parameter.numel() for parameter in network.parameters()):,} parameters"


def learner(stated: object, network: nn.Module) -> str:
    """A network as the configuration states it, or by its class where it is none of a configuration."""
    return f"{text(stated) if isinstance(stated, Mapping) else type(network).__name__}, {counted(network)}"


def learners(module: pl.LightningModule, init_args: Mapping[str, Any]) -> dict[str, str]:
    """Who learns, by the name under which it is shown.

    Args:
        module: Built.
        init_args: Of the model in the configuration; may be empty.
    """
    if not isinstance(module, Distiller) or module.student is None:
        return {"module": learner(None, module)}
    if isinstance(module, OnlineDistiller) and isinstance(module.student, Peers):
        stated = init_args.get("peers") or {}
        peers = module.student.networks.items()
        return {f"peer {name}": learner(stated.get(name, {}).get("network"), network) for name, network in peers}
    return {"student": learner(init_args.get("student"), module.student)}


def member(teacher: Teacher) -> str:
    """One who teaches."""
    if not isinstance(teacher, FrozenTeacher):
        return type(teacher).__name__
    recipe: Network | nn.Module = teacher.recipe
    name = text(vars(recipe)) if isinstance(recipe, Network) else type(recipe).__name__
    return name if teacher.network is None else f"{name}, {counted(teacher.network)}"


def teachers(module: pl.LightningModule, metrics: Mapping[str, Any]) -> dict[str, str]:
    """Who teaches, by the name under which it is shown, with the top-1 of the examination.

    Args:
        module: Built.
        metrics: The trainer's ``callback_metrics``, after the examination.
    """
    if isinstance(module, OnlineDistiller):
        return {"teachers": f"the peers, by {type(module.collaboration).__name__}"}
    if not isinstance(module, Distiller):
        return {}
    found = {}
    teacher = module.present_teacher
    if isinstance(module, BornAgainDistiller):
        found["teachers"] = f"the generation before, of {module.generations}"
        teacher = module.succession.first
    if teacher is None:
        return found
    members = teacher.members()
    if teacher not in members.values():
        found["teacher"] = f"{type(teacher).__name__}"
    for name, one in members.items():
        key = name if name == "teacher" and "teacher" not in found else f"· {name}"
        found[key] = member(one)
        if (top1 := metrics.get(f"check/{name}_top1")) is not None:
            found[key] += f", top-1 {float(top1):.4f} on {int(metrics[f'check/{name}_images'])} images"
    return found


def data(trainer: pl.Trainer, module: pl.LightningModule) -> str:
    """What is known of the data: class, training images, classes, shape."""
    given: Any = getattr(trainer, "datamodule", None)
    loader = trainer.train_dataloader
    dataset: Any = loader.dataset if isinstance(loader, DataLoader) else None
    parts = [type(dataset if given is None else given).__name__]
    images = len(given.training_rows()) if isinstance(given, NamedViews) else None
    if images is None and isinstance(dataset, Sized):
        images = len(dataset)
    if isinstance(module, DataFreeDistiller):
        parts.append(f"{images:,} images of the generator in an epoch")
    elif images is not None:
        parts.append(f"{images:,} training images")
    classes = given.num_classes if isinstance(given, KnowsClasses) else None
    if classes is None and isinstance(module, Distiller):
        classes = module.num_classes
    if classes is not None:
        parts.append(f"{classes:,} classes")
    if isinstance(given, KnowsViews):
        parts.append(" x ".join(map(str, given.image_shape)))
    return ", ".join(parts)


def length(trainer: pl.Trainer) -> str:
    """How long the training is, at most."""
    parts = []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        epochs = "1 epoch" if trainer.max_epochs == 1 else f"{trainer.max_epochs:,} epochs"
        parts.append(f"{epochs} of {trainer.num_training_batches:,} batches")
    if trainer.max_steps >= 0:
        parts.append(f"at most {trainer.max_steps:,} steps")
    return ", ".join(parts) or "no end is stated"


def batch(trainer: pl.Trainer, seen: int) -> str:
    """Images of an optimizer step over all devices.

    Args:
        trainer: Of the run.
        seen: Images of a batch of this device, for data that does not say it.
    """
    given: Any = getattr(trainer, "datamodule", None)
    size = given.global_batch_size if isinstance(given, HasGlobalBatch) else seen * trainer.world_size
    return f"{size * int(cast(Any, trainer).accumulate_grad_batches):,} images a step"


def devices(trainer: pl.Trainer) -> str:
    """Number and kind of the devices, and the precision."""
    device = trainer.strategy.root_device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    nodes = f" on {trainer.num_nodes} nodes" if trainer.num_nodes > 1 else ""
    return f"{trainer.world_size} x {kind}{nodes}, {trainer.precision}"
