"""Teachers: what a student learns from. The plain one is a frozen network."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from kd_lightning.batch import Batch
from kd_lightning.models.input_adapter import Views
from kd_lightning.models.tap_plan import TapPlan


class Outputs(NamedTuple):
    """What a network answers: ``logits`` ``[N, C]``, and its taps as they were asked for (plural ones as lists)."""

    logits: Tensor
    taps: dict[str, Tensor | list[Tensor]]


@dataclass(frozen=True)
class TeacherCheck:
    """How the teacher is examined before step 0.

    Args:
        images: At most so many are looked at.
        above_chance: Its top-1 must be at least so many times 1/C, or half-way from 1/C to 1 where that is less.
    """

    images: int = 2000
    above_chance: float = 2.0

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"check.images must be >= 1, got {self.images}; check: false switches it off")
        if self.above_chance < 0:
            raise ValueError(f"check.above_chance must be >= 0, got {self.above_chance}")

    def threshold(self, num_classes: int) -> float:
        """The least top-1 in [0, 1] that passes."""
        chance = 1 / num_classes
        return min(self.above_chance * chance, (1 + chance) / 2)


class Teacher(ABC):
    """Answers batches. It is no submodule of who learns from it: not in its state, optimizer, averages or modes.

    Attributes:
        check: Its examination before step 0, or False.
        expected_top1: The top-1 in [0, 1] that it is known for, or None.
    """

    check: TeacherCheck | Literal[False]
    expected_top1: float | None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: whoever copies a student does not copy its teacher."""
        return self

    @abstractmethod
    def setup(self, num_classes: int, views: Views, taps: Sequence[str]) -> None:
        """Get ready to answer with these taps."""

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Move to the device of the batches."""

    @abstractmethod
    def plan(self) -> TapPlan:
        """Where the taps are, and the shapes of them and of ``logits``; known after `setup`."""

    @abstractmethod
    def __call__(self, batch: Batch, view: str = "default") -> Outputs:
        """Logits and taps for a view of the batch, without gradient."""

    def begin(self, views: Views) -> None:
        """Told of the data at the start of each training, after `setup` and `to`. Most teachers ignore it."""
        return

    def shard(self, mesh: DeviceMesh) -> None:
        """Told, after `setup`, that the run spreads its networks over ranks, which all ask it at the same times.

        Most teachers stay whole on each rank.
        """
        return

    def follow(self, student: nn.Module) -> None:
        """Told of the built student: before `setup`, and when a training starts at step 0. Most teachers ignore it."""
        return

    def advance(self, student: nn.Module, step: int, steps: float) -> None:
        """Told of each optimizer step that the student has made. Most teachers ignore it.

        Args:
            student: After the step.
            step: Its number, counted from 0.
            steps: How many the whole training has; infinite where nobody says.
        """
        return

    def state(self) -> dict[str, Any] | None:
        """What of it is trained, which the checkpoint keeps; None for a teacher that does not change."""
        return None

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Take up the state of a checkpoint.

        Raises:
            ValueError: if one of the two, checkpoint and teacher, has a state and the other has not.
        """
        if state is not None:
            raise ValueError(
                f"the checkpoint holds a teacher that was trained; a {type(self).__name__} does not change"
            )

    def members(self) -> dict[str, "Teacher"]:
        """Who is examined before step 0, by the name that is shown."""
        return {"teacher": self}

    def remembered(self) -> dict[str, tuple[float, int]]:
        """What is known of an examination of these before, as `examined` was told; they are not examined again."""
        return {}

    def examined(self, results: Mapping[str, tuple[float, int]]) -> None:
        """Told of the examination: member -> top-1 in [0, 1], and the number of images. Most teachers ignore it."""
        return

    def identity(self) -> dict[str, str]:
        """What its answers depend on beside the batch, as short texts.

        Raises:
            ValueError: if it changes while it teaches.
        """
        raise ValueError(f"a {type(self).__name__} does not say what its answers depend on, so they cannot be stored")

    def require_temperatures(self, temperatures: Mapping[str, float | None]) -> None:
        """Told of the temperatures of the terms that look at its logits, by name; None is one that nobody knows.

        Most teachers ignore it.
        """
        return

    def notices(self) -> list[str]:
        """What a user should know before the training."""
        return []

    def unlabelled(self, batch: Batch, view: str = "default") -> Outputs:
        """The answer that is measured, which never looks at the labels."""
        return self(batch, view)

    def classifier(self) -> Callable[[Tensor], Tensor]:
        """A function from its embeddings ``[..., D]`` to its logits ``[..., C]``; gradients pass to the embeddings.

        Raises:
            ValueError: if there is none, as for an ensemble.
        """
        raise ValueError(
            f"a {type(self).__name__} has no single classifier that a loss could use: take a FrozenTeacher"
        )

    def norms(self, tap: str) -> list[tuple[Tensor, Tensor]]:
        """Mean and standard deviation ``[C]`` of a tap's channels by the batch normalisation in front, for each part.

        Raises:
            ValueError: if there is none.
        """
        raise ValueError(
            f"a {type(self).__name__} has no batch normalisation that a loss could ask for: take a FrozenTeacher"
        )
