"""The overhaul of feature distillation: margin ReLU and partial L2."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from kd_lightning.losses.adapters import connectors
from kd_lightning.losses.base import Features, Loss, Norms, Shapes, Taps
from kd_lightning.losses.features import adapted, check_same, of_one_size, paired
from kd_lightning.losses.precision import in_float32


@in_float32
def negative_mean(mean: Tensor, std: Tensor) -> Tensor:
    """E[x | x < 0] of normal distributions, elementwise; -3 std where less than 0.1 % of one is negative.

    Source: Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, eq. 2, with the authors' cut.
    """
    mean, std = mean.double(), std.double().abs()
    below = torch.special.ndtr(-mean / std)
    density = torch.exp(-((mean / std) ** 2) / 2) / (2 * torch.pi) ** 0.5
    return torch.where(below > 0.001, mean - std * density / below, -3 * std)


@in_float32
def partial_l2(student: Sequence[Tensor], teacher: Sequence[Tensor], margins: Sequence[Tensor] | None = None) -> Tensor:
    """Sum over taps i = 0 ... n - 1 of sum (s - T)^2 where s > T or T > 0, / 2^(n - i - 1) / N / 1000.

    T = max(t, margin). What is not counted is a negative response that is already below the target.

    Source: Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, eq. 1 to 5, with the factors of
    the authors' code.

    Args:
        student: Values before the activation, ``[N, C, H, W]`` of each tap, from the first to the last.
        teacher: As the student's.
        margins: Of each tap's channels, ``[C]``, < 0; without them T = t.

    Raises:
        ValueError: if shapes differ.
    """
    pairs = paired(student, teacher)
    values = []
    for i, (s, t) in enumerate(pairs):
        s, t = of_one_size(s, t)
        check_same(s, t)
        if margins is not None:
            t = torch.maximum(t, margins[i].to(t)[:, None, None])
        counted = (s > t) | (t > 0)
        values.append(((s - t).square() * counted).sum() / 2 ** (len(pairs) - i - 1))
    return torch.stack(values).sum() / len(pairs[0][0]) / 1000


class OverhaulFeature(Loss):
    """OFD: sum over taps of the partial L2, sum (s - T)^2 where s > T or T > 0, / 2^(n - i - 1) / N / 1000.

    T = max(t, margin), with the margin of a channel E[x | x < 0] by the batch normalisation in front of the teacher's
    tap. The taps are before the activation; connectors are 1x1 convolutions with batch normalisation. The protocol's
    weight of 1e-3 is inside, so the weight of the term is 1.

    Source: Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, eq. 1 to 5, with the factors of
    the authors' code.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"teacher_norms"})
    student_tap: ClassVar[Taps] = "stages:preact"
    teacher_tap: ClassVar[Taps | None] = "stages:preact"

    def __init__(self) -> None:
        super().__init__()
        self.connectors = nn.ModuleList()

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Make a connector for each tap.

        Raises:
            ValueError: if a tap is no map.
        """
        self.connectors = connectors(student, teacher)

    def forward(
        self, student: Features, teacher: Features, target: Tensor, teacher_norms: Norms | None = None
    ) -> Tensor:
        """The loss of maps ``[N, C, H, W]`` before their activation; the labels are not looked at."""
        pairs = paired(student, teacher)
        students = adapted(self.connectors, [s for s, _ in pairs])
        margins = None if teacher_norms is None else [negative_mean(*norm) for norm in teacher_norms]
        return partial_l2(students, [t for _, t in pairs], margins)
