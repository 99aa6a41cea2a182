"""Variational information distillation: the student predicts the teacher's features and how surely."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.losses.adapters import OfOneSize, conv1x1
from kd_lightning.losses.base import Features, Loss, Shapes, Taps
from kd_lightning.losses.features import adapted, check_same, of_one_size, paired
from kd_lightning.losses.precision import in_float32

LEAST_VARIANCE = 1e-5


@in_float32
def negative_log_likelihood(mean: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    """Mean over all entries of 1/2 [(mu - t)^2 / v + log v].

    Source: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, eq. 5, without the
    constant.

    Args:
        mean: mu, the student's prediction, ``[N, C, ...]``.
        teacher: t, of the same shape.
        variance: v > 0 of each channel, ``[C]``, or a scalar.

    Raises:
        ValueError: if the shapes differ.
    """
    mean, teacher = of_one_size(mean, teacher)
    check_same(mean, teacher)
    v = variance.view(-1, *[1] * (teacher.ndim - 2))
    return ((mean - teacher).square() / v + v.log()).mean() / 2


def inverse_softplus(value: float) -> float:
    """The x with softplus(x) = value, for a value > 0."""
    return value + math.log(-math.expm1(-value))


def regressor(student: tuple[int, ...], teacher: tuple[int, ...]) -> nn.Sequential:
    """Three 1x1 convolutions with ReLU between; linear maps for vectors; a larger map is average-pooled first."""
    if len(student) != len(teacher):
        raise ValueError(f"student and teacher must both be maps or both be vectors, got {student} and {teacher}")
    if len(student) not in (2, 4):
        raise ValueError(f"VID needs maps [N, C, H, W] or vectors [N, D], got {student}: a tap's :map makes a map")
    s, t = student[1], teacher[1]
    if len(student) == 4:
        convs = conv1x1(s, t), nn.ReLU(), conv1x1(t, t), nn.ReLU(), conv1x1(t, t)
        return nn.Sequential(OfOneSize((teacher[2], teacher[3])), *convs)
    return nn.Sequential(nn.Linear(s, t), nn.ReLU(), nn.Linear(t, t), nn.ReLU(), nn.Linear(t, t))


class VID(Loss):
    """Mean over all entries of 1/2 [(mu(s) - t)^2 / v + log v], summed over the taps.

    mu is three 1x1 convolutions with ReLU between; v = softplus(log_scale) + 1e-5 is learnt for each channel of the
    teacher. At equality it is log v / 2, which has no lower bound but that of v.

    Source: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, eq. 5, without the
    constant.

    Args:
        init_variance: v at the start, > 1e-5.
    """

    student_tap: ClassVar[Taps] = "stages"
    teacher_tap: ClassVar[Taps | None] = "stages"

    def __init__(self, init_variance: float = 5.0) -> None:
        super().__init__()
        if not LEAST_VARIANCE < init_variance < float("inf"):
            raise ValueError(f"init_variance must be > {LEAST_VARIANCE} and finite, got {init_variance}")
        self.init_variance = init_variance
        self.regressors, self.log_scales = nn.ModuleList(), nn.ParameterList()

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Make a regressor and variances for each tap."""
        start = inverse_softplus(self.init_variance - LEAST_VARIANCE)
        shapes = list(zip(student, teacher, strict=False))  # forward says where their numbers differ
        self.regressors = nn.ModuleList(regressor(s, t) for s, t in shapes)
        self.log_scales = nn.ParameterList(torch.full((t[1],), start) for _, t in shapes)

    def variances(self, taps: int) -> list[Tensor]:
        """Variances of each tap's channels; the initial one for all where the loss was not built."""
        if not len(self.log_scales):
            return [torch.tensor(self.init_variance)] * taps
        return [F.softplus(scale) + LEAST_VARIANCE for scale in self.log_scales]

    def forward(self, student: Features, teacher: Features, target: Tensor) -> Tensor:
        """The loss of maps ``[N, C, H, W]`` or vectors; the labels are not looked at."""
        pairs = paired(student, teacher)
        means = adapted(self.regressors, [s for s, _ in pairs])
        values = [
            negative_log_likelihood(mean, t, v.to(t.device))
            for mean, (_, t), v in zip(means, pairs, self.variances(len(pairs)), strict=True)
        ]
        return torch.stack(values).sum()
