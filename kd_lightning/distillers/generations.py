"""What generations in one training need: a length, a seed and a file each, and others that start over with them."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from kd_lightning.seeds import hashed

SEED = "PL_GLOBAL_SEED"
FOLDER = "generations"


@runtime_checkable
class StandsIn(Protocol):
    """A callback that keeps something in the student's place, as an average of its weights."""

    def stand_in(self, module: pl.LightningModule) -> nn.Module | None:
        """What is evaluated in the student's place; None for the student itself."""

    def restart(self, module: pl.LightningModule) -> None:
        """Begin with the student as it is now."""


@runtime_checkable
class StartsOver(Protocol):
    """Names the samples of each epoch, and can begin again with those of epoch 0."""

    def start_over_every(self, epochs: int) -> None:
        """Count epochs anew after so many."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from the start of the training."""


@runtime_checkable
class HasBatchSampler(Protocol):
    """A loader whose batches are named by a sampler."""

    @property
    def batch_sampler(self) -> object:
        """What has a ``sampler``."""


@runtime_checkable
class HasSampler(Protocol):
    """What names batches by a sampler of its own."""

    @property
    def sampler(self) -> object:
        """What has ``set_epoch``."""


def generation_seed(seed: int, generation: int) -> int:
    """The seed of a generation, in [0, 2^32): a training of its own with this seed is that generation.

    Args:
        seed: Of the run; it is generation 0's.
        generation: Counted from 0.
    """
    return seed if generation == 0 else int(hashed(seed, "generation", generation))


def epochs_each(max_epochs: int | None, generations: int, stated: int | None, dry: bool) -> int:
    """Epochs of each generation.

    Args:
        max_epochs: The trainer's.
        generations: How many there are.
        stated: How many epochs each is to have; None for what ``max_epochs`` gives each.
        dry: A few steps of generation 0 alone, whatever ``max_epochs`` says.

    Raises:
        ValueError: if the generations do not fill ``max_epochs``.
    """
    if dry:
        return stated or 1
    if stated is not None:
        if max_epochs != generations * stated:
            raise ValueError(
                f"trainer.max_epochs must be generations x epochs_per_generation = {generations} x {stated} = "
                f"{generations * stated}, got {max_epochs}; with epochs_per_generation null it follows from max_epochs"
            )
        return stated
    if max_epochs is None or max_epochs < 1 or max_epochs % generations:
        raise ValueError(f"trainer.max_epochs must be a multiple of the {generations} generations, got {max_epochs}")
    return max_epochs // generations


def generation_file(root: str | Path, generation: int) -> Path:
    """Where the weights of a finished generation are in a run's folder."""
    return Path(root) / FOLDER / f"{generation}.safetensors"


@contextmanager
def as_run_of(seed: int) -> Iterator[None]:
    """Inside, ``run_seed()`` is this seed; outside, what it was."""
    before = os.environ.get(SEED)
    os.environ[SEED] = str(seed)
    try:
        yield
    finally:
        if before is None:
            del os.environ[SEED]
        else:
            os.environ[SEED] = before


def start_loaders_over(loaders: object, epochs: int, epoch: int) -> None:
    """Let loaders that name their samples name them in each generation as in the first one.

    Args:
        loaders: Of the training, one or several.
        epochs: Of a generation.
        epoch: That comes next, counted from the start of the training.
    """
    for loader in loaders if isinstance(loaders, list | tuple) else [loaders]:
        batches = loader.batch_sampler if isinstance(loader, HasBatchSampler) else None
        sampler = batches.sampler if isinstance(batches, HasSampler) else None
        if isinstance(sampler, StartsOver):
            sampler.start_over_every(epochs)
            sampler.set_epoch(epoch)


def forget_best(checkpoint: ModelCheckpoint) -> None:
    """Let what comes next be the best; files that were saved stay until they are replaced."""
    checkpoint.best_k_models = {}
    checkpoint.best_model_path = checkpoint.kth_best_model_path = ""
    checkpoint.best_model_score = checkpoint.current_score = None
    checkpoint.kth_value = torch.tensor(torch.inf if checkpoint.mode == "min" else -torch.inf)


def start_callbacks_over(callbacks: Iterable[object], module: pl.LightningModule) -> None:
    """Let averages begin with the new student, and the best checkpoint be one of its own."""
    for callback in callbacks:
        if isinstance(callback, StandsIn):
            callback.restart(module)
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
            forget_best(callback)


def evaluated(callbacks: Iterable[object], module: pl.LightningModule, student: nn.Module) -> dict[str, Tensor]:
    """The weights that are evaluated, on the CPU: the student's, or those of what stands in for it."""
    found = [callback.stand_in(module) for callback in callbacks if isinstance(callback, StandsIn)]
    kept = next((stand_in for stand_in in found if stand_in is not None), student)
    return {key: value.cpu() for key, value in kept.state_dict().items()}


@runtime_checkable
class HasGenerations(Protocol):
    """A module that trains generations."""

    def enter(self) -> None:
        """Be in the generation that the epoch belongs to."""


class Handover(pl.Callback):
    """Calls ``enter`` of the module before any other callback looks: at each epoch's start, also of a resumed one."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A resumed epoch has no start."""
        self._enter(pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The epoch may be the first of a generation."""
        self._enter(pl_module)

    @staticmethod
    def _enter(module: pl.LightningModule) -> None:
        if isinstance(module, HasGenerations):
            module.enter()
