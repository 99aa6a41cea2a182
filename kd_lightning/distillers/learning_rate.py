"""Learning-rate schedules stated as shares of the training, so that a longer training only needs a larger number."""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@runtime_checkable
class StretchedToTraining(Protocol):
    """A scheduler that wants to know how many epochs the training has before its first step."""

    def stretch(self, epochs: int) -> None:
        """Take ``epochs`` as the whole training."""


class ShareMultiStepLR(LambdaLR):
    """Multiplies the rate by ``gamma`` at each milestone, a share of the training.

    Milestones 0.625, 0.75, 0.875 of 240 epochs are 150, 180, 210: the standard CIFAR-100 distillation protocol.

    Args:
        optimizer: Whose rates are changed, once an epoch.
        milestones: Shares in (0, 1), ascending; rounded to whole epochs.
        gamma: Factor at each milestone, > 0.
    """

    def __init__(self, optimizer: Optimizer, milestones: Sequence[float], gamma: float = 0.1) -> None:
        if list(milestones) != sorted(milestones) or not all(0 < share < 1 for share in milestones):
            raise ValueError(f"milestones must be ascending shares in (0, 1), got {list(milestones)}")
        if not gamma > 0:
            raise ValueError(f"gamma must be > 0, got {gamma}")
        self.milestones, self.gamma, self.epochs = tuple(milestones), gamma, 1
        super().__init__(optimizer, self._factor)

    def stretch(self, epochs: int) -> None:
        """Take ``epochs`` as the whole training."""
        self.epochs = epochs

    def _factor(self, epoch: int) -> float:
        passed = sum(epoch >= round(share * self.epochs) for share in self.milestones) if epoch else 0
        return float(self.gamma**passed)


class ShareCosineLR(LambdaLR):
    """A linear warm-up, then half a cosine down to a floor.

    Args:
        optimizer: Whose rates are changed, once an epoch.
        warmup_epochs: Epochs of the warm-up, >= 0.
        warmup_factor: Factor in epoch 0 of a warm-up, in [0, 1].
        final_factor: Factor that the cosine ends at, in [0, 1].
    """

    def __init__(
        self, optimizer: Optimizer, warmup_epochs: int = 0, warmup_factor: float = 0.0, final_factor: float = 0.0
    ) -> None:
        if warmup_epochs < 0:
            raise ValueError(f"warmup_epochs must be >= 0, got {warmup_epochs}")
        for name, factor in {"warmup_factor": warmup_factor, "final_factor": final_factor}.items():
            if not 0 <= factor <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {factor}")
        self.warmup_epochs, self.warmup_factor, self.final_factor = warmup_epochs, warmup_factor, final_factor
        self.epochs = 1
        super().__init__(optimizer, self._factor)

    def stretch(self, epochs: int) -> None:
        """Take ``epochs`` as the whole training."""
        self.epochs = epochs

    def _factor(self, epoch: int) -> float:
        if epoch < self.warmup_epochs:
            return self.warmup_factor + (1 - self.warmup_factor) * epoch / self.warmup_epochs
        share = min((epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1), 1.0)
        return self.final_factor + (1 - self.final_factor) * (1 + math.cos(math.pi * share)) / 2
