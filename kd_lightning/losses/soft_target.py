"""Soft targets: the classic distillation of Hinton et al., as a loss and as one function."""

import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses.base import Loss


def check_temperature(temperature: float) -> float:
    """The temperature, if it is one.

    Raises:
        ValueError: if it is not > 0 and finite.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    if temperature == float("inf"):
        raise ValueError("temperature must be finite, got inf")
    return temperature


def precise(logits: Tensor) -> Tensor:
    """The logits in float32 at least."""
    return logits.float() if logits.dtype.itemsize < 4 else logits


def standardized(logits: Tensor) -> Tensor:
    """Logits ``[N, C]`` z-scored per sample, (z - mean) / (1e-7 + std), with the unbiased standard deviation.

    Computed in float32 at least.

    Source: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, eq. 12.

    Raises:
        ValueError: for a single class, which has no deviation.
    """
    if logits.shape[1] < 2:
        raise ValueError(f"standardize needs at least 2 classes, got logits of shape {tuple(logits.shape)}")
    logits = precise(logits)
    return (logits - logits.mean(dim=1, keepdim=True)) / (1e-7 + logits.std(dim=1, keepdim=True))


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
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher must have logits of one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    check_temperature(temperature)
    student, teacher = precise(student), precise(teacher)
    log_p_s = F.log_softmax(student / temperature, dim=1)
    log_p_t = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True) * temperature**2


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
    kl = soft_target(student_logits, teacher_logits.detach(), T)
    return alpha * kl + (1 - alpha) * F.cross_entropy(student_logits, labels)


class SoftTarget(Loss):
    """`soft_target` of the logits, optionally standardized.

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
