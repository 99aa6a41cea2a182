"""Class attention transfer: where each class is seen."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses.base import Features, Head, Loss, Taps
from kd_lightning.losses.features import check_maps, check_same, single, unit
from kd_lightning.losses.precision import in_float32, precise


def class_attention(feature: Tensor, classifier: Head, size: int) -> Tensor:
    """Class attention maps ``[N, C, size^2]``, unit vectors: the classifier at every position, average-pooled.

    Args:
        feature: The map ``[N, D, H, W]`` whose mean over the positions the classifier takes.
        classifier: From ``[..., D]`` to ``[..., C]``.
        size: Side of the pooled map; at most that of the feature.
    """
    maps = classifier(feature.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    sides = (min(size, feature.shape[2]), min(size, feature.shape[3]))
    return unit(F.adaptive_avg_pool2d(precise(maps), sides).flatten(2))


@in_float32
def attention_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of class attention maps ``[N, C, positions]`` (eq. 4 of the paper).

    Raises:
        ValueError: if the shapes differ.
    """
    check_same(student, teacher)
    return (student - teacher).square().mean()


class CATKD(Loss):
    """Mean squared difference of the class attention maps, pooled to size x size and l2-normalised for each class.

    A class attention map is the classifier's response at each position of the last map.

    Source: Guo et al., "Class Attention Transfer Based Knowledge Distillation", CVPR 2023, eq. 2 to 4.

    Args:
        size: Side of the pooled maps, >= 1; the paper's is 2.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"student_classifier", "teacher_classifier"})
    student_tap: ClassVar[Taps] = "last_map"
    teacher_tap: ClassVar[Taps | None] = "last_map"

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size must be >= 1, got {size}")
        self.size = size

    def forward(
        self, student: Features, teacher: Features, target: Tensor, student_classifier: Head, teacher_classifier: Head
    ) -> Tensor:
        """The loss of the last maps ``[N, D, H, W]``; the labels are not looked at."""
        s, t = single(student, teacher)
        check_maps((s, t))
        cam_s = class_attention(s, student_classifier, self.size)
        return attention_error(cam_s, class_attention(t, teacher_classifier, self.size))
