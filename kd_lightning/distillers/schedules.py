"""Schedules: the weight of a term as a function of the epoch.

Wherever they take a length, an integer is epochs and a float a share of the training; see `epochs_of`. A training that
is made longer when it is resumed has the shares of its new length, unless its learning rate is in shares too: a
checkpoint would restore those of the old one, which is refused.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kd_lightning.length import Length, check_length, epochs_of


class Schedule(ABC):
    """A weight for each epoch."""

    @abstractmethod
    def __call__(self, epoch: int, epochs: int | None) -> float:
        """The weight in an epoch.

        Args:
            epoch: Counted from 0; where there are generations, from the start of the present one.
            epochs: Of the whole training, or generation; None where ``trainer.max_epochs`` does not say.
        """


@dataclass(frozen=True)
class Constant(Schedule):
    """The same weight in every epoch.

    Args:
        weight: Any number; with 0 the term is not computed.
    """

    weight: float

    def __call__(self, epoch: int, epochs: int | None) -> float:
        """The weight."""
        return self.weight


@dataclass(frozen=True)
class Ramp(Schedule):
    """A linear warm-up: weight x min((epoch + 1) / epochs, 1).

    As Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, warm their loss up over 20 of 240 epochs.

    Args:
        weight: The final weight.
        epochs: Length of the ramp, >= 1 epoch or a share in (0, 1].
    """

    weight: float
    epochs: Length

    def __post_init__(self) -> None:
        check_length("epochs", self.epochs)

    def __call__(self, epoch: int, epochs: int | None) -> float:
        """The weight in an epoch, counted from 0, of so many."""
        return self.weight * min((epoch + 1) / epochs_of(self.epochs, epochs), 1.0)


@dataclass(frozen=True)
class Window(Schedule):
    """A weight from epoch ``start`` on and before epoch ``end``; 0 outside.

    Two windows make FitNets' two stages; a window that ends early makes early-stopped distillation (Cho and Hariharan,
    "On the Efficacy of Knowledge Distillation", ICCV 2019). A share that ends one window and
    starts another is the same epoch in a training of any length; one that is too short for a window has no epoch of it.

    Args:
        weight: The weight inside.
        start: First epoch, counted from 0, or a share in [0, 1).
        end: The epoch after the last one, or a share in (0, 1]; None for the end of training.
    """

    weight: float
    start: Length = 0
    end: Length | None = None

    def __post_init__(self) -> None:
        check_length("start", self.start, least=0)
        if self.end is not None:
            check_length("end", self.end)
        if self.start and self.end is not None and isinstance(self.start, int) != isinstance(self.end, int):
            raise ValueError(f"start and end must both be epochs or both be shares, got {self.start} and {self.end}")
        last = 1.0 if self.end is None and isinstance(self.start, float) else self.end
        if last is not None and last <= self.start:
            raise ValueError(f"a window needs start < end, got start {self.start} and end {self.end}")

    def __call__(self, epoch: int, epochs: int | None) -> float:
        """The weight in an epoch, counted from 0, of so many."""
        started = epoch >= epochs_of(self.start, epochs)
        return self.weight if started and (self.end is None or epoch < epochs_of(self.end, epochs)) else 0.0


@dataclass(frozen=True)
class Piecewise(Schedule):
    """One weight after another, each from an epoch on.

    As where a first stage trains what a second one uses, with a weight of its own.

    Args:
        weights: One more than there are starts.
        starts: The first epoch of each weight but the first, counted from 0, or all of them shares in (0, 1);
            increasing.
    """

    weights: Sequence[float]
    starts: Sequence[Length]

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.starts) + 1:
            raise ValueError(
                f"weights must be one more than starts, got {len(self.weights)} weights and {len(self.starts)} starts"
            )
        whole, starts = all(isinstance(start, int) for start in self.starts), list(self.starts)
        if not whole and not all(isinstance(start, float) and 0 < start < 1 for start in starts):
            raise ValueError(f"starts must all be integers of epochs, or all shares in (0, 1), got {starts}")
        if starts != sorted(set(starts)) or (whole and any(start < 1 for start in starts)):
            raise ValueError(f"starts must be increasing{' epochs >= 1' if whole else ''}, got {starts}")

    def __call__(self, epoch: int, epochs: int | None) -> float:
        """The weight in an epoch, counted from 0, of so many."""
        return self.weights[sum(epochs_of(start, epochs) <= epoch for start in self.starts)]


@dataclass
class Complement(Schedule):
    """1 less the weight of another term, in every epoch: (1 - alpha) of the labels beside alpha of the teacher.

    One number, or one schedule, then moves the whole mixture, in a sweep over alpha as in a training that hands over
    from the teacher to the labels (Clark et al., "BAM! Born-Again Multi-Task Networks", ACL 2019, "teacher annealing").

    Args:
        of: Name of the other term, whose weight is in [0, 1].
    """

    of: str
    _other: Schedule | None = field(default=None, init=False, repr=False)

    def beside(self, weights: Mapping[str, Schedule]) -> float | Schedule:
        """The weight among others, by the names of their terms; a number where the other one is.

        Raises:
            ValueError: if there is no such term, it is a complement too, or its weight is not in [0, 1].
        """
        if self._other is not None:
            return self
        if self.of not in weights:
            raise ValueError(f"weight is the complement of {self.of!r}, which is no term; there are {sorted(weights)}")
        other = weights[self.of]
        if isinstance(other, Complement):
            raise ValueError(f"weight is the complement of {self.of!r}, whose weight is a complement too")
        tied = Complement(self.of)
        tied._other = other
        return tied(0, None) if isinstance(other, Constant) else tied

    def __call__(self, epoch: int, epochs: int | None) -> float:
        """1 less the other weight in an epoch, counted from 0, of so many."""
        if self._other is None:
            raise ValueError(f"the complement of {self.of!r} has a weight only beside that term, among criteria")
        if not 0 <= (weight := self._other(epoch, epochs)) <= 1:
            raise ValueError(f"{self.of!r} must weigh 0 to 1 where another term is its complement, got {weight:g}")
        return 1 - weight
