"""Relational knowledge distillation: distances and angles among the samples of a batch."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses.base import Features, Loss, Taps
from kd_lightning.losses.features import paired, unit
from kd_lightning.losses.logits import check_weight
from kd_lightning.losses.precision import in_float32


def differences(feature: Tensor) -> Tensor:
    """``[N, N, D]``: entry (i, j) is f_i - f_j of flattened features."""
    rows = feature.flatten(1)
    return rows[:, None] - rows[None]


def normalised_distances(feature: Tensor) -> Tensor:
    """Euclidean distances ``[N, N]``, divided by their mean over those that are not zero; zeros where all are."""
    distances: Tensor = torch.linalg.vector_norm(differences(feature), dim=2)
    apart = distances.detach() > 0
    return distances / (distances.sum() / apart.sum().clamp_min(1)).clamp_min(torch.finfo(distances.dtype).tiny)


def angles(feature: Tensor) -> Tensor:
    """Cosines ``[N, N, N]``: entry (i, j, k) is the cosine of the angle at i between j and k; 0 where two coincide."""
    directions = unit(differences(feature))
    return directions @ directions.mT


@in_float32
def relational_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 (beta 1) between normalised distances, mean over N^2 entries with the zero ones.

    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019, eq. 4 to 6.

    Args:
        student: ``[N, ...]``.
        teacher: ``[N, ...]``; the rest of the shape may differ.
    """
    return F.smooth_l1_loss(normalised_distances(student), normalised_distances(teacher))


@in_float32
def relational_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 (beta 1) between the cosines of angles, mean over N^3 entries with the zero ones.

    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019, eq. 7 and 8.

    Args:
        student: ``[N, ...]``.
        teacher: ``[N, ...]``; the rest of the shape may differ.
    """
    return F.smooth_l1_loss(angles(student), angles(teacher))


class RKD(Loss):
    """distance x `RelationalDistance` + angle x `RelationalAngle`, summed over the taps.

    It is over pairs and triples of samples of the batch: on several devices, each device's own.

    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019, eq. 4 to 8.

    Args:
        distance: Weight of the distances, >= 0.
        angle: Weight of the angles, >= 0.
    """

    student_tap: ClassVar[Taps] = "embedding"
    teacher_tap: ClassVar[Taps | None] = "embedding"

    def __init__(self, distance: float = 25.0, angle: float = 50.0) -> None:
        super().__init__()
        self.distance, self.angle = check_weight("distance", distance), check_weight("angle", angle)

    def forward(self, student: Features, teacher: Features, target: Tensor) -> Tensor:
        """The loss of features ``[N, ...]``; the labels are not looked at."""
        pairs = paired(student, teacher)
        distance = torch.stack([relational_distance(s, t) for s, t in pairs]).sum()
        angle = torch.stack([relational_angle(s, t) for s, t in pairs]).sum()
        return self.distance * distance + self.angle * angle


class RelationalDistance(Loss):
    """RKD-D: smooth L1 (beta 1) between distances divided by their mean over non-zero ones, mean over N^2 entries.

    It is over pairs of samples of the batch: on several devices, each device's own.

    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019, eq. 4 to 6.
    """

    student_tap: ClassVar[Taps] = "embedding"
    teacher_tap: ClassVar[Taps | None] = "embedding"

    def forward(self, student: Features, teacher: Features, target: Tensor) -> Tensor:
        """The loss of features ``[N, ...]``, summed over the taps; the labels are not looked at."""
        return torch.stack([relational_distance(s, t) for s, t in paired(student, teacher)]).sum()


class RelationalAngle(Loss):
    """RKD-A: smooth L1 (beta 1) between cosines of the angles in triples of samples, mean over N^3 entries.

    It is over triples of samples of the batch: on several devices, each device's own.

    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019, eq. 7 and 8.
    """

    student_tap: ClassVar[Taps] = "embedding"
    teacher_tap: ClassVar[Taps | None] = "embedding"

    def forward(self, student: Features, teacher: Features, target: Tensor) -> Tensor:
        """The loss of features ``[N, ...]``, summed over the taps; the labels are not looked at."""
        return torch.stack([relational_angle(s, t) for s, t in paired(student, teacher)]).sum()
