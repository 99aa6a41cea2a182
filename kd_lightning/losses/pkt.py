"""Probabilistic knowledge transfer: the chance of picking a sample as a neighbour."""

from typing import ClassVar

import torch
from torch import Tensor

from kd_lightning.losses.base import Features, Loss, Taps
from kd_lightning.losses.features import paired, unit
from kd_lightning.losses.precision import in_float32


def neighbours(feature: Tensor) -> Tensor:
    """Probabilities ``[N, N]``, rows that sum to 1: (cos + 1) / 2 of flattened features, row-normalised."""
    rows = unit(feature.flatten(1))
    affinity = ((rows @ rows.T + 1) / 2).clamp_min(0)  # rounding leaves cosines a little below -1
    return affinity / affinity.sum(dim=1, keepdim=True)


@in_float32
def probabilistic_transfer(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    """Mean over N^2 of P_t log((P_t + eps) / (P_s + eps)), P = row-normalised (cos + 1) / 2.

    Source: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018, eq. 4
    to 7, with the cosine kernel.

    Args:
        student: ``[N, ...]``.
        teacher: ``[N, ...]``; the rest of the shape may differ.
        eps: Added inside the logarithm, > 0.
    """
    p_s, p_t = neighbours(student), neighbours(teacher)
    return (p_t * ((p_t + eps) / (p_s + eps)).log()).mean()


class PKT(Loss):
    """Mean over N^2 of P_t log((P_t + eps) / (P_s + eps)), P = row-normalised (cos + 1) / 2; summed over the taps.

    It is over pairs of samples of the batch: on several devices, each device's own.

    Source: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018, eq. 4
    to 7, with the cosine kernel.

    Args:
        eps: Added inside the logarithm, > 0.
    """

    student_tap: ClassVar[Taps] = "embedding"
    teacher_tap: ClassVar[Taps | None] = "embedding"

    def __init__(self, eps: float = 1e-7) -> None:
        super().__init__()
        if not 0 < eps < 1:
            raise ValueError(f"eps must be in (0, 1), got {eps}")
        self.eps = eps

    def forward(self, student: Features, teacher: Features, target: Tensor) -> Tensor:
        """The loss of features ``[N, ...]``; the labels are not looked at."""
        return torch.stack([probabilistic_transfer(s, t, self.eps) for s, t in paired(student, teacher)]).sum()
