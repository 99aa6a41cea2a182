"""Cross entropy with the teacher's decision."""

import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses.base import Loss
from kd_lightning.losses.cross_entropy import check_label_smoothing


class HardLabel(Loss):
    """Mean over the batch of the cross entropy with argmax of the teacher's logits.

    The labels themselves are not looked at.

    Source: Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML 2021,
    eq. 3.

    Args:
        label_smoothing: Share of the teacher's decision spread over all classes, in [0, 1); the paper finds 0.1
            useful where the labels are smoothed too.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = check_label_smoothing(label_smoothing)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``[N, C]`` of both."""
        return F.cross_entropy(student, teacher.argmax(dim=1), label_smoothing=self.label_smoothing)
