"""Learning-rate schedules stated as shares of the training, so that a longer training only needs a larger number."""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from kd_lightning.length import Length, check_length, epochs_of


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
        passed = sum(epoch >= epochs_of(share, self.epochs) for share in self.milestones)
        return float(self.gamma**passed)


class ShareCosineLR(LambdaLR):
    """A linear warm-up, then half a cosine down to a floor.

    Args:
        optimizer: Whose rates are changed, once an epoch.
        warmup_epochs: Epochs of the warm-up, >= 0; a float is a share of the training in [0, 1].
        warmup_factor: Factor in epoch 0 of a warm-up, in [0, 1].
        final_factor: Factor that the cosine ends at, in [0, 1].
    """

    def __init__(
        self, optimizer: Optimizer, warmup_epochs: Length = 0, warmup_factor: float = 0.0, final_factor: float = 0.0
    ) -> None:
        check_length("warmup_epochs", warmup_epochs, least=0)
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
        warmup = epochs_of(self.warmup_epochs, self.epochs)
        if epoch < warmup:
            return self.warmup_factor + (1 - self.warmup_factor) * epoch / warmup
        share = min((epoch - warmup) / max(self.epochs - warmup, 1), 1.0)
        return self.final_factor + (1 - self.final_factor) * (1 + math.cos(math.pi * share)) / 2
