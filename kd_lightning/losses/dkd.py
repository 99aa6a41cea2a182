"""Decoupled knowledge distillation: the target class and the others, weighted apart."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses.base import Loss
from kd_lightning.losses.logits import (
    check_logits,
    check_temperature,
    check_weight,
    kl,
    largest_class,
    others,
    standardized,
)
from kd_lightning.losses.precision import in_float32


def _parts(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (label, not label), ``[N, 2]``, and of the other classes alone, ``[N, C - 1]``."""
    rest = others(logits, label)
    binary = torch.cat([logits.gather(1, label[:, None]), rest.logsumexp(dim=1, keepdim=True)], dim=1)
    return F.log_softmax(binary, dim=1), F.log_softmax(rest, dim=1)


@in_float32
def decoupled(
    student: Tensor, teacher: Tensor, target: Tensor, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0
) -> Tensor:
    """T^2 (alpha TCKD + beta NCKD), mean over the batch.

    TCKD is KL between the binary distributions (target class, all others), NCKD is KL between the distributions over
    the others alone; with beta = 1 - p_t[y] the sum would be the KL of soft targets.

    Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, eq. 7.

    Args:
        student: Logits ``[N, C]``.
        teacher: Logits ``[N, C]``.
        target: Class indices, int64 ``[N]``; of a mixed target, float ``[N, C]``, its largest class is used.
        alpha: Weight of the target class's part, >= 0.
        beta: Weight of the other classes' part, >= 0.
        temperature: T > 0.

    Raises:
        ValueError: if the logits differ in shape, or there are fewer than 2 classes.
    """
    check_logits(student, teacher, classes=2)
    label = largest_class(target)
    binary_s, others_s = _parts(student / temperature, label)
    binary_t, others_t = _parts(teacher / temperature, label)
    return temperature**2 * (alpha * kl(binary_s, binary_t) + beta * kl(others_s, others_t))


class DKD(Loss):
    """T^2 (alpha TCKD + beta NCKD): KL of (target class, the others) and KL among the others, weighted apart.

    A mixed target is taken by its largest class.

    Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, eq. 7.

    Args:
        alpha: Weight of the target class's part, >= 0.
        beta: Weight of the other classes' part, >= 0. The paper takes 2, 6 or 8 by the pair on CIFAR-100, more for a
            teacher that is surer of its answers; 0.5 or 2 on ImageNet.
        temperature: T > 0; 4 on CIFAR-100, 1 on ImageNet.
        standardize: z-score both logits per sample first (`standardized`).
    """

    def __init__(
        self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, standardize: bool = False
    ) -> None:
        super().__init__()
        self.alpha, self.beta = check_weight("alpha", alpha), check_weight("beta", beta)
        self.temperature, self.standardize = check_temperature(temperature), standardize

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``[N, C]`` of both."""
        if self.standardize:
            student, teacher = standardized(student), standardized(teacher)
        return decoupled(student, teacher, target, self.alpha, self.beta, self.temperature)
