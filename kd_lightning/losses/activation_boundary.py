"""Activation boundaries: whether a neuron fires, not how strongly."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from kd_lightning.losses.adapters import connectors
from kd_lightning.losses.base import Features, Loss, Shapes, Taps
from kd_lightning.losses.features import adapted, check_same, of_one_size, paired
from kd_lightning.losses.precision import in_float32


@in_float32
def boundary(student: Sequence[Tensor], teacher: Sequence[Tensor], margin: float = 1.0) -> Tensor:
    """Sum over taps i = 0 ... n - 1 of 2^(i - n + 1) S_i / N x 3 / 1000.

    S = sum of (s + m)^2 where s > -m and t <= 0, and of (s - m)^2 where s <= m and t > 0: the student's neuron is to be
    at least a margin on the teacher's side of 0.

    Source: Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", AAAI
    2019, eq. 6, with the factors of the authors' code.

    Args:
        student: Values before the activation, ``[N, ...]`` of each tap, from the first to the last.
        teacher: As the student's.
        margin: m > 0.

    Raises:
        ValueError: if shapes differ.
    """
    pairs = paired(student, teacher)
    values = []
    for i, (s, t) in enumerate(pairs):
        s, t = of_one_size(s, t)
        check_same(s, t)
        off, on = (s > -margin) & (t <= 0), (s <= margin) & (t > 0)
        summed = ((s + margin).square() * off + (s - margin).square() * on).sum()
        values.append(2.0 ** (i - len(pairs) + 1) * summed)
    return torch.stack(values).sum() / len(pairs[0][0]) * 3 / 1000


class ActivationBoundary(Loss):
    """AB: the student's neurons are pushed to the side of 0 on which the teacher's are, by a margin.

    Sum over taps i = 0 ... n - 1 of 2^(i - n + 1) S_i / N x 3 / 1000, S = sum of (s + m)^2 where s > -m and t <= 0, and
    of (s - m)^2 where s <= m and t > 0. The taps are before the activation; connectors are 1x1 convolutions with batch
    normalisation. Published as an initial stage of 30 epochs without labels: a window, then cross entropy.

    Source: Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", AAAI
    2019, eq. 6, with the factors of the authors' code.

    Args:
        margin: m > 0.
    """

    student_tap: ClassVar[Taps] = "stages:preact"
    teacher_tap: ClassVar[Taps | None] = "stages:preact"

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        if not 0 < margin < float("inf"):
            raise ValueError(f"margin must be > 0 and finite, got {margin}")
        self.margin = margin
        self.connectors = nn.ModuleList()

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Make a connector for each tap.

        Raises:
            ValueError: if a tap is no map.
        """
        self.connectors = connectors(student, teacher)

    def forward(self, student: Features, teacher: Features, target: Tensor) -> Tensor:
        """The loss of maps ``[N, C, H, W]`` before their activation; the labels are not looked at."""
        pairs = paired(student, teacher)
        students = adapted(self.connectors, [s for s, _ in pairs])
        return boundary(students, [t for _, t in pairs], self.margin)
