"""Soft targets: the classic distillation of Hinton et al., as a loss and as one function."""

import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses.base import Loss
from kd_lightning.losses.logits import check_logits, check_temperature, kl, standardized
from kd_lightning.losses.precision import in_float32


@in_float32
def soft_target(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """T^2 KL(p_t || p_s), summed over classes, mean over the batch, p = softmax(z / T).

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, sec. 2. T^2 keeps the size of
    the gradient when T changes. Computed in float32 at least.

    Args:
        student: Logits ``[N, C]``.
        teacher: Logits ``[N, C]``.
        temperature: T > 0.

    Returns:
        A scalar >= 0.

    Raises:
        ValueError: if the two have different shapes, for instance different numbers of classes, or T is not > 0.
    """
    check_logits(student, teacher)
    check_temperature(temperature)
    log_p_s = F.log_softmax(student / temperature, dim=1)
    log_p_t = F.log_softmax(teacher / temperature, dim=1)
    return kl(log_p_s, log_p_t) * temperature**2


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, T: float = 4.0, alpha: float = 0.7
) -> Tensor:
    """The classic formula in one call, for people with their own loop: alpha T^2 KL + (1 - alpha) CE.

    The teacher's logits are constants here. Typical ranges: T from 3 to 20 (Hinton et al. 2015 use 20 on MNIST and 2 to
    5 on speech; Tian et al., "Contrastive Representation Distillation", ICLR 2020, use 4 with alpha 0.9 on CIFAR-100),
    alpha from 0.5 to 0.9, training 1.5 to 2 times longer than without a teacher (Beyer et al., "Knowledge distillation:
    a good teacher is patient and consistent", CVPR 2022, find that far longer still helps).

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``, of the same images.
        labels: Class indices, int64 ``[N]``, or probabilities, float ``[N, C]``.
        T: Temperature > 0.
        alpha: Share of the teacher's term, in [0, 1].

    Returns:
        A scalar.

    Raises:
        ValueError: if T or alpha is out of range, or the logits differ in shape.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    soft = soft_target(student_logits, teacher_logits.detach(), T)
    return alpha * soft + (1 - alpha) * F.cross_entropy(student_logits, labels)


class SoftTarget(Loss):
    """T^2 KL(p_t || p_s), summed over classes, mean over the batch, p = softmax(z / T).

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, sec. 2; for ``standardize`` Sun
    et al., "Logit Standardization in Knowledge Distillation", CVPR 2024.

    Args:
        temperature: T > 0; 4 in the standard CIFAR-100 protocol, 1 on ImageNet, 2 as the base of logit standardization.
        standardize: z-score both logits per sample first (`standardized`), with the gradient through both steps.
    """

    def __init__(self, temperature: float = 4.0, standardize: bool = False) -> None:
        super().__init__()
        self.temperature, self.standardize = check_temperature(temperature), standardize

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``[N, C]`` of both; the labels are not looked at."""
        if self.standardize:
            student, teacher = standardized(student), standardized(teacher)
        return soft_target(student, teacher, self.temperature)
