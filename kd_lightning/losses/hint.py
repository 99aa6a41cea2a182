"""Hints: the student regresses the teacher's features."""

from typing import ClassVar, get_args

import torch
from torch import Tensor, nn

from kd_lightning.losses.adapters import Adapter, adapter
from kd_lightning.losses.base import Features, Loss, Shapes, Taps
from kd_lightning.losses.features import adapted, check_same, of_one_size, paired
from kd_lightning.losses.precision import in_float32


@in_float32
def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of (s - t)^2 over all entries, the larger of two maps average-pooled first.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, eq. 3, as a mean.

    Args:
        student: ``[N, C, H, W]`` or ``[N, ..., D]``.
        teacher: As the student's, with as many channels.

    Raises:
        ValueError: if the shapes differ after pooling.
    """
    student, teacher = of_one_size(student, teacher)
    check_same(student, teacher)
    return (student - teacher).square().mean()


class Hint(Loss):
    """FitNets: mean (r(s) - t)^2 over all entries, with a trained regressor r; summed over the taps.

    Maps that still differ in size after the regressor are average-pooled to the smaller.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, eq. 3, as a mean; the regressor of the
    protocol of Tian et al., "Contrastive Representation Distillation", ICLR 2020.

    Args:
        adapter: The regressor: ``none``; ``conv1x1`` (no bias); ``conv_bn_relu`` (1x1, or 3x3 with stride 2 or
            transposed 4x4 with stride 2 for sizes that differ by 2); ``linear`` for vectors.
    """

    student_tap: ClassVar[Taps] = "stage:2"
    teacher_tap: ClassVar[Taps | None] = "stage:2"

    def __init__(self, adapter: Adapter = "conv_bn_relu") -> None:
        super().__init__()
        if adapter not in get_args(Adapter):
            raise ValueError(f"adapter must be one of {list(get_args(Adapter))}, got {adapter!r}")
        self.kind = adapter
        self.adapters = nn.ModuleList()

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Make a regressor for each tap."""
        if len(student) == len(teacher):  # else forward says what is wrong
            self.adapters = nn.ModuleList(adapter(self.kind, s, t) for s, t in zip(student, teacher, strict=True))

    def forward(self, student: Features, teacher: Features, target: Tensor) -> Tensor:
        """The loss of maps ``[N, C, H, W]`` or vectors; the labels are not looked at."""
        pairs = paired(student, teacher)
        students = adapted(self.adapters, [s for s, _ in pairs])
        return torch.stack([hint(s, t) for s, (_, t) in zip(students, pairs, strict=True)]).sum()
