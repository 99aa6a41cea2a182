"""Schedules: the weight of a term as a function of the epoch."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass


class Schedule(ABC):
    """A weight for each epoch."""

    @abstractmethod
    def __call__(self, epoch: int) -> float:
        """The weight in an epoch, counted from 0."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The same weight in every epoch.

    Args:
        weight: Any number; with 0 the term is not computed.
    """

    weight: float

    def __call__(self, epoch: int) -> float:
        """The weight."""
        return self.weight


@dataclass(frozen=True)
class Ramp(Schedule):
    """A linear warm-up: weight x min((epoch + 1) / epochs, 1).

    As Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, warm their loss up over 20 epochs.

    Args:
        weight: The final weight.
        epochs: Length of the ramp, >= 1.
    """

    weight: float
    epochs: int

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be >= 1, got {self.epochs}")

    def __call__(self, epoch: int) -> float:
        """The weight in an epoch, counted from 0."""
        return self.weight * min((epoch + 1) / self.epochs, 1.0)


@dataclass(frozen=True)
class Window(Schedule):
    """A weight from epoch ``start`` on and before epoch ``end``; 0 outside.

    Two windows make FitNets' two stages; a window that ends early makes early-stopped distillation (Cho and Hariharan,
    "On the Efficacy of Knowledge Distillation", ICCV 2019).

    Args:
        weight: The weight inside.
        start: First epoch, counted from 0.
        end: The epoch after the last one; None for the end of training.
    """

    weight: float
    start: int = 0
    end: int | None = None

    def __post_init__(self) -> None:
        if self.start < 0 or (self.end is not None and self.end <= self.start):
            raise ValueError(f"a window needs 0 <= start < end, got start {self.start} and end {self.end}")

    def __call__(self, epoch: int) -> float:
        """The weight in an epoch, counted from 0."""
        return self.weight if epoch >= self.start and (self.end is None or epoch < self.end) else 0.0


@dataclass(frozen=True)
class Piecewise(Schedule):
    """One weight after another, each from an epoch on.

    As where a first stage trains what a second one uses, with a weight of its own.

    Args:
        weights: One more than there are starts.
        starts: The first epoch of each weight but the first, counted from 0, increasing.
    """

    weights: Sequence[float]
    starts: Sequence[int]

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.starts) + 1:
            raise ValueError(
                f"weights must be one more than starts, got {len(self.weights)} weights and {len(self.starts)} starts"
            )
        if list(self.starts) != sorted(set(self.starts)) or any(start < 1 for start in self.starts):
            raise ValueError(f"starts must be increasing epochs >= 1, got {list(self.starts)}")

    def __call__(self, epoch: int) -> float:
        """The weight in an epoch, counted from 0."""
        return self.weights[sum(start <= epoch for start in self.starts)]
