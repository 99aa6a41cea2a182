"""The pace of a training: how many images in a second, and how long it will still take."""

import math
from datetime import timedelta
from typing import Any, cast

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.data import extract_batch_size

from kd_lightning.batch import Batch

SMOOTHED = 10.0  # seconds, about, that the images per second are a mean over


def batches_in(per_epoch: float, max_epochs: int | None, max_steps: int, per_step: int) -> float:
    """Batches of the whole training; infinite where nothing says when it ends.

    Args:
        per_epoch: Batches of an epoch.
        max_epochs: The trainer's; None or -1 for no limit.
        max_steps: Of the optimizer; -1 for no limit.
        per_step: Batches whose gradients make one step.
    """
    by_epochs = per_epoch * max_epochs if max_epochs is not None and max_epochs >= 0 else math.inf
    return min(by_epochs, max_steps * per_step if max_steps >= 0 else math.inf)


def time_left(elapsed: float, done: float, still: float) -> str:
    """What is still to be done at the mean speed until now, as ``h:mm:ss``; ``-:--:--`` where nobody knows.

    Args:
        elapsed: Seconds in which so much was done.
        done: Batches in this time.
        still: Batches that are left.
    """
    if done <= 0 or not math.isfinite(still):
        return "-:--:--"
    return str(timedelta(seconds=round(elapsed * max(still, 0) / done)))


def images_in(batch: object) -> int:
    """The size of a batch by its first tensor; 0 for a batch without tensors, whose size nobody knows."""
    if isinstance(batch, Batch):
        return len(batch)
    try:
        return extract_batch_size(cast(Any, batch))
    except MisconfigurationException:
        return 0


class Speed:
    """Something per second, smoothed: what is further back counts for less."""

    def __init__(self) -> None:
        self.count = self.seconds = 0.0

    def add(self, count: float, seconds: float) -> None:
        """Take in so much in so many seconds."""
        kept = math.exp(-seconds / SMOOTHED)
        self.count, self.seconds = kept * self.count + count, kept * self.seconds + seconds

    def __str__(self) -> str:
        return f"{self.count / self.seconds:,.0f} images/s" if self.count and self.seconds else ""
