"""Attention transfer: where a network looks."""

from typing import ClassVar

import torch
from torch import Tensor

from kd_lightning.losses.base import Features, Loss, Taps
from kd_lightning.losses.features import check_maps, of_one_size, paired, unit
from kd_lightning.losses.precision import in_float32


def attention(feature: Tensor, p: float = 2) -> Tensor:
    """Unit vectors ``[N, H W]``: the l2-normalised mean over channels of f^p, of maps ``[N, C, H, W]``."""
    return unit(feature.pow(p).mean(dim=1).flatten(1), dim=1)


@in_float32
def attention_transfer(student: Tensor, teacher: Tensor, p: float = 2) -> Tensor:
    """Mean over batch and positions of (Q_s - Q_t)^2, Q = l2-normalised mean_c f^p.

    The larger map is average-pooled to the smaller first.

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, eq. 2, with the means and the
    exponent of the standard protocol.

    Args:
        student: Maps ``[N, C, H, W]``.
        teacher: Maps ``[N, C', H', W']``.
        p: Exponent, a whole number >= 1.

    Raises:
        ValueError: if one is not a map.
    """
    check_maps((student, teacher))
    student, teacher = of_one_size(student, teacher)
    return (attention(student, p) - attention(teacher, p)).square().mean()


class AttentionTransfer(Loss):
    """AT: mean over batch and positions of (Q_s - Q_t)^2, Q = l2-normalised mean_c f^p; summed over the taps.

    The larger of two maps is average-pooled to the smaller first. Channels may differ.

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, eq. 2, with the means and the
    exponent of the protocol of Tian et al., ICLR 2020.

    Args:
        p: Exponent, a whole number >= 1.
    """

    student_tap: ClassVar[Taps] = "stages"
    teacher_tap: ClassVar[Taps | None] = "stages"

    def __init__(self, p: float = 2) -> None:
        super().__init__()
        if p < 1 or not float(p).is_integer():  # other powers of zero or negative values have no finite gradient
            raise ValueError(f"p must be a whole number >= 1, got {p}")
        self.p = p

    def forward(self, student: Features, teacher: Features, target: Tensor) -> Tensor:
        """The loss of maps ``[N, C, H, W]``; the labels are not looked at."""
        return torch.stack([attention_transfer(s, t, self.p) for s, t in paired(student, teacher)]).sum()
