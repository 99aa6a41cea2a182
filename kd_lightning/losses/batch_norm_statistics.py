"""Generated images must look to a teacher's batch normalisation as its training images did."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from kd_lightning.losses.base import Loss, Taps
from kd_lightning.losses.precision import precise


def batch_norm_statistics(statistics: Sequence[Tensor]) -> Tensor:
    """Sum over layers of ||mean - running mean||_2 + ||variance - running variance||_2.

    Source: Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", CVPR 2020, eq. 4; Fast-
    Datafree (Fang et al., AAAI 2022) uses the same.

    Args:
        statistics: For each layer ``[2, 2, C]``: of the images (mean, biased variance), then of the training data.

    Returns:
        A scalar >= 0, 0 where all of them agree.

    Raises:
        ValueError: if there is no layer, or one is of another shape.
    """
    if not statistics:
        raise ValueError("there is no batch normalisation whose statistics could be matched")
    if wrong := [tuple(layer.shape) for layer in statistics if layer.ndim != 3 or layer.shape[:2] != (2, 2)]:
        raise ValueError(f"statistics of a layer must be [2, 2, C], got {wrong[0]}")
    return torch.stack([(made - real).norm(dim=1).sum() for made, real in map(precise, statistics)]).sum()


class BatchNormStatistics(Loss):
    """Sum over the teacher's batch normalisations of ||mean - running mean||_2 + ||variance - running variance||_2.

    So the statistics of generated images at their inputs are to be those of the training images. The tap,
    ``batch_norms``, is given by `DataFreeDistiller`. The statistics are of the batch: on several devices, each
    device's own.

    Source: Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", CVPR 2020, eq. 4.
    """

    student_tap: ClassVar[Taps] = ()
    teacher_tap: ClassVar[Taps | None] = "batch_norms"

    def forward(self, student: object, teacher: Sequence[Tensor], target: Tensor) -> Tensor:
        """The loss of the layers' statistics, ``[2, 2, C]`` each; the labels are not looked at."""
        return batch_norm_statistics(teacher)
