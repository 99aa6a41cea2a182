"""Confidence-weighted labels: the cross entropy of each sample by the teacher's largest probability."""

import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses.base import Loss
from kd_lightning.losses.logits import check_logits
from kd_lightning.losses.precision import in_float32


@in_float32
def confidence_weighted(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """sum_i w_i CE_i / sum_j w_j, w_i = max_c p_t,ic, over the samples of the batch.

    Source: Furlanello et al., "Born-Again Neural Networks", ICML 2018, eq. 9.

    Args:
        student: Logits ``[N, C]``.
        teacher: Logits ``[N, C]``.
        target: Class indices, int64 ``[N]``, or probabilities, float ``[N, C]``.

    Returns:
        A scalar >= 0.

    Raises:
        ValueError: if the logits differ in shape.
    """
    check_logits(student, teacher)
    weight = F.softmax(teacher, dim=1).amax(dim=1)
    return (weight * F.cross_entropy(student, target, reduction="none")).sum() / weight.sum()


class CWTM(Loss):
    """sum_i w_i CE_i / sum_j w_j: the cross entropy with the label, weighted by the teacher's max, w_i = max_c p_t,ic.

    Nothing of the teacher reaches the student but how sure it is of each sample; p is taken at T = 1. The weights are
    normalised over the samples of the batch: on several devices, each device's own. Mixed targets are taken as they
    are.

    Source: Furlanello et al., "Born-Again Neural Networks", ICML 2018, eq. 9.
    """

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``[N, C]`` of both."""
        return confidence_weighted(student, teacher, target)
