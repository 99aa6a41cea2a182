"""Cross entropy with the labels, whole or mixed."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses.base import Loss, Taps


def check_label_smoothing(label_smoothing: float) -> float:
    """The label smoothing, if it is one.

    Raises:
        ValueError: if it is not in [0, 1).
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    return label_smoothing


class CrossEntropy(Loss):
    """Mean over the batch of -sum_c y_c log softmax(z)_c.

    The target is class indices, int64 ``[N]``, or probabilities, float ``[N, C]`` (mixup, CutMix).

    Args:
        label_smoothing: Share of the target spread over all classes, in [0, 1) (Szegedy et al., CVPR 2016). A teacher
            that was trained with it teaches worse (Mueller et al., NeurIPS 2019).
    """

    teacher_tap: ClassVar[Taps | None] = None

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = check_label_smoothing(label_smoothing)

    def forward(self, student: Tensor, teacher: Tensor | None, target: Tensor) -> Tensor:
        """The loss of logits ``[N, C]``."""
        return F.cross_entropy(student, target, label_smoothing=self.label_smoothing)
