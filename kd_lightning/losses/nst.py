"""Neuron selectivity transfer: the distributions of channels over positions."""

from typing import ClassVar

import torch
from torch import Tensor

from kd_lightning.losses.base import Features, Loss, Taps
from kd_lightning.losses.features import check_maps, of_one_size, paired, unit
from kd_lightning.losses.precision import in_float32


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """Mean over batch and pairs of rows of (x y)^2, of rows ``[N, C, D]`` and ``[N, C', D]``."""
    return (a @ b.mT).square().mean()


@in_float32
def selectivity(student: Tensor, teacher: Tensor) -> Tensor:
    """k_tt + k_ss - 2 k_st: squared MMD between l2-normalised channel rows, with the kernel (x y)^2.

    The larger map is average-pooled to the smaller first; channels may differ.

    Source: Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, eq. 3, with
    the polynomial kernel (d = 2, c = 0).

    Args:
        student: Maps ``[N, C, H, W]``.
        teacher: Maps ``[N, C', H', W']``.

    Raises:
        ValueError: if one is not a map.
    """
    check_maps((student, teacher))
    s, t = (unit(maps.flatten(2)) for maps in of_one_size(student, teacher))
    return _kernel(t, t) + _kernel(s, s) - 2 * _kernel(s, t)


class NST(Loss):
    """k_tt + k_ss - 2 k_st: squared MMD between l2-normalised channel rows, kernel (x y)^2; summed over the taps.

    The larger of two maps is average-pooled to the smaller first. Channels may differ.

    Source: Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, eq. 3, with
    the polynomial kernel (d = 2, c = 0).
    """

    student_tap: ClassVar[Taps] = "stages"
    teacher_tap: ClassVar[Taps | None] = "stages"

    def forward(self, student: Features, teacher: Features, target: Tensor) -> Tensor:
        """The loss of maps ``[N, C, H, W]``; the labels are not looked at."""
        return torch.stack([selectivity(s, t) for s, t in paired(student, teacher)]).sum()
