"""Similarity preservation: which samples of a batch resemble one another."""

from typing import ClassVar

import torch
from torch import Tensor

from kd_lightning.losses.base import Features, Loss, Taps
from kd_lightning.losses.features import paired, unit
from kd_lightning.losses.precision import in_float32


@in_float32
def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum (G_t - G_s)^2 / N^2, G = F F^T of flattened features with l2-normalised rows.

    Source: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, eq. 1 to 4.

    Args:
        student: ``[N, ...]``.
        teacher: ``[N, ...]``; the rest of the shape may differ.
    """
    g_s, g_t = (unit(f.flatten(1) @ f.flatten(1).T) for f in (student, teacher))
    return (g_t - g_s).square().mean()


class Similarity(Loss):
    """SP: sum (G_t - G_s)^2 / N^2, G = F F^T of flattened features with l2-normalised rows; summed over the taps.

    It is over pairs of samples of the batch: on several devices, each device's own.

    Source: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, eq. 1 to 4.
    """

    student_tap: ClassVar[Taps] = "last_stage"
    teacher_tap: ClassVar[Taps | None] = "last_stage"

    def forward(self, student: Features, teacher: Features, target: Tensor) -> Tensor:
        """The loss of features ``[N, ...]``; the labels are not looked at."""
        return torch.stack([similarity(s, t) for s, t in paired(student, teacher)]).sum()
