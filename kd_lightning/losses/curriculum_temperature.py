"""Curriculum temperature: the temperature is learnt against the student, more so from epoch to epoch."""

import math
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from kd_lightning.length import Length, check_length, epochs_of
from kd_lightning.losses.base import Loss, Shapes


class Reversal(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number (Ganin and Lempitsky, ICML 2015, eq. 8 and 9)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        """``x``, unchanged."""
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient times the factor."""
        return ctx.factor * gradients[0], None


def reversal(epoch: int, epochs: int) -> float:
    """Lambda: from 0 in epoch 0 by half a cosine to -1 in epoch ``epochs``, and -1 from there on."""
    return (math.cos(math.pi * min(epoch, epochs) / epochs) - 1) / 2


@runtime_checkable
class HasTemperature(Protocol):
    """A loss with a temperature."""

    temperature: float | Tensor


class CurriculumTemperature(Loss):
    """CTKD: T = 1 + 20 sigmoid(theta) in the given loss, with theta learnt to make that loss larger.

    The gradient of theta is multiplied by lambda, which goes from 0 to -1 by a cosine: the task gets harder slowly.
    theta starts at 1 (T = 15.6), is trained by the same optimizer, and is in the checkpoint.

    Source: Li et al., "Curriculum Temperature for Knowledge Distillation", AAAI 2023, eq. 5 to 8, the global form.

    Args:
        loss: A loss of logits with a ``temperature``, for instance `SoftTarget`; its own temperature is not used.
        epochs: Until lambda is -1, >= 1; a float is a share of the training in (0, 1].
        lowest: T for theta -> -infinity, > 0.
        span: The highest T less the lowest, > 0.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"epoch", "epochs"})

    def __init__(self, loss: Loss, epochs: Length = 10, lowest: float = 1.0, span: float = 20.0) -> None:
        super().__init__()
        if not isinstance(loss, HasTemperature) or callable(loss.temperature):  # another curriculum's is a method
            raise ValueError(f"loss must have a temperature, as SoftTarget has, got {type(loss).__name__}")
        if (loss.student_tap, loss.teacher_tap) != ("logits", "logits"):
            raise ValueError(f"loss must be of logits, got {type(loss).__name__} of {loss.student_tap!r}")
        if unmet := loss.needs - self.needs:
            raise ValueError(f"loss must need nothing but logits, targets and the epoch, got one that needs {unmet}")
        if not (lowest > 0 and span > 0):
            raise ValueError(f"lowest and span must be > 0, got {lowest} and {span}")
        self.loss, self.epochs, self.lowest, self.span = loss, check_length("epochs", epochs), lowest, span
        self.theta = nn.Parameter(torch.ones(()))

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Hand the shapes on."""
        self.loss.build(student, teacher)

    def temperature(self, factor: float = 1.0) -> Tensor:
        """T, a scalar; the gradient that reaches theta is multiplied by ``factor``."""
        theta = cast(Tensor, Reversal.apply(self.theta, factor))
        return self.lowest + self.span * theta.sigmoid()

    def forward(
        self, student: Tensor, teacher: Tensor, target: Tensor, epoch: int, epochs: int | None = None
    ) -> Tensor:
        """The given loss at the learnt temperature."""
        inner, own = cast(HasTemperature, self.loss), cast(HasTemperature, self.loss).temperature
        inner.temperature = self.temperature(reversal(epoch, epochs_of(self.epochs, epochs)))
        given = {"epoch": epoch, "epochs": epochs}
        needed = {need: given[need] for need in self.loss.needs}
        try:
            value: Tensor = self.loss(student, teacher, target, **needed)
        finally:
            inner.temperature = own  # a module that held a tensor of the graph could not be copied
        return value
