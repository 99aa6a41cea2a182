"""A rank's share of the global batch: known from the loader's plan, or asked of the other ranks."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import lightning.pytorch as pl
import torch
from torch import Tensor


@runtime_checkable
class KnowsGlobalBatch(Protocol):
    """A loader that knows how many samples a batch has over all ranks, without asking them."""

    def global_batch(self, position: int) -> int:
        """Samples over all ranks of the batch at a position of the epoch, counted from 0."""


def share_of(
    samples: int, position: int, trainer: pl.Trainer, over_ranks: Callable[[Tensor], Tensor]
) -> float | Tensor:
    """What a rank's mean weighs in the mean of the ranks' means, for that to be the mean over all samples.

    A loader that knows the global batch makes this arithmetic; for any other, the ranks add up their samples.

    Args:
        samples: Of this rank's batch.
        position: Of the batch in the epoch.
        trainer: Of the run.
        over_ranks: Sums a tensor over the processes.
    """
    if trainer.world_size == 1:
        return 1.0
    loader = trainer.train_dataloader
    if isinstance(loader, KnowsGlobalBatch):
        return samples * trainer.world_size / loader.global_batch(position)
    return samples * trainer.world_size / over_ranks(torch.tensor(float(samples)))
