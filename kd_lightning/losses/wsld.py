"""Weighted soft labels: less distillation where the student is already better than its teacher."""

import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses.base import Loss
from kd_lightning.losses.logits import check_logits, check_temperature, check_weight
from kd_lightning.losses.precision import in_float32


@in_float32
def weighted_soft_labels(
    student: Tensor, teacher: Tensor, target: Tensor, temperature: float = 2.0, alpha: float = 2.5
) -> Tensor:
    """The weighted soft cross entropy, alpha T^2 mean(w x CE_T), w = 1 - exp(-CE_s / (CE_t + 1e-7)).

    No gradient flows through w.

    CE_s and CE_t are the sample's cross entropies with its label, at T = 1.

    Source: Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective", ICLR
    2021, eq. 8 and 9.

    Args:
        student: Logits ``[N, C]``.
        teacher: Logits ``[N, C]``.
        target: Class indices, int64 ``[N]``, or probabilities, float ``[N, C]``.
        temperature: T > 0.
        alpha: Weight >= 0.

    Raises:
        ValueError: if the logits differ in shape.
    """
    check_logits(student, teacher)
    ce_s = F.cross_entropy(student, target, reduction="none").detach()
    ce_t = F.cross_entropy(teacher, target, reduction="none").detach()
    weight = 1 - (-ce_s / (ce_t + 1e-7)).exp()
    p_t, log_p_s = F.softmax(teacher / temperature, dim=1), F.log_softmax(student / temperature, dim=1)
    return -alpha * temperature**2 * (weight * (p_t * log_p_s).sum(dim=1)).mean()


class WSLD(Loss):
    """alpha T^2 mean(w x soft cross entropy), w = 1 - exp(-CE_s / (CE_t + 1e-7)).

    The weight w is near 0 for samples that the student knows better than the teacher; no gradient flows through it.
    Mixed targets are taken as they are, in both cross entropies.

    Source: Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective", ICLR
    2021, eq. 8 and 9.

    Args:
        temperature: T > 0.
        alpha: Weight >= 0; the paper's, beside a cross entropy of weight 1.
    """

    def __init__(self, temperature: float = 2.0, alpha: float = 2.5) -> None:
        super().__init__()
        self.temperature, self.alpha = check_temperature(temperature), check_weight("alpha", alpha)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``[N, C]`` of both."""
        return weighted_soft_labels(student, teacher, target, self.temperature, self.alpha)
