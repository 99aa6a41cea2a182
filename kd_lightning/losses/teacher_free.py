"""Teacher-free distillation: a virtual teacher that always knows the class, and little else."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses.base import Loss, Taps
from kd_lightning.losses.logits import check_temperature, kl
from kd_lightning.losses.precision import in_float32


def virtual_teacher(target: Tensor, classes: int, correct: float) -> Tensor:
    """Probabilities ``[N, C]``: a for the label's class, (1 - a) / (C - 1) for each other one.

    Source: Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020, eq. 9. Of a
    mixed target it is the mixture of the two virtual teachers.

    Args:
        target: Class indices, int64 ``[N]``, or probabilities, float ``[N, C]``.
        classes: C >= 2.
        correct: a, above 1 / C and below 1.

    Raises:
        ValueError: if a is no more than 1 / C, or there are fewer than 2 classes.
    """
    if classes < 2 or correct <= 1 / classes:
        raise ValueError(f"correct must be above 1 / C, which is {1 / max(classes, 1):.4f}, got {correct}")
    rest = (1 - correct) / (classes - 1)
    label = F.one_hot(target, classes) if target.ndim == 1 else target
    return label.to(torch.get_default_dtype() if target.ndim == 1 else target.dtype) * (correct - rest) + rest


@in_float32
def teacher_free(student: Tensor, target: Tensor, correct: float = 0.99, temperature: float = 20.0) -> Tensor:
    """T^2 KL(p_v || p_s), where p_v is the virtual teacher's probability to the power of 1 / T, normalised.

    Source: Yuan et al., CVPR 2020, eq. 10. The factor T^2, which the paper leaves to the term's weight, keeps the size
    of the gradient, as in `soft_target`. The authors' code differs from the paper: it takes the softmax of the
    probabilities over T, and the student at T = 1.

    Args:
        student: Logits ``[N, C]``.
        target: Class indices, int64 ``[N]``, or probabilities, float ``[N, C]``.
        correct: a, above 1 / C and below 1.
        temperature: T > 0.
    """
    teacher = virtual_teacher(target, student.shape[1], correct).to(student.dtype).log()
    log_p_s = F.log_softmax(student / temperature, dim=1)
    return kl(log_p_s, F.log_softmax(teacher / temperature, dim=1)) * temperature**2


class TeacherFree(Loss):
    """T^2 KL(p_v || p_s), p_v = softmax(log v / T), v = a for the label's class and (1 - a) / (C - 1) for others.

    A teacher that needs no network. At T = 1 with a = 1 - e + e / C it is cross entropy with label smoothing e, less
    the constant entropy of v.

    Source: Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020, eq. 9 and
    10, where it stands beside the cross entropy, weighted by alpha and 1 - alpha. Their code has another temperature
    (see `teacher_free`).

    Args:
        correct: a, above 1 / C and below 1; the paper takes at least 0.9.
        temperature: T > 0; the paper takes 20 and more on CIFAR-100.
    """

    teacher_tap: ClassVar[Taps | None] = None

    def __init__(self, correct: float = 0.99, temperature: float = 20.0) -> None:
        super().__init__()
        if not 0 < correct < 1:
            raise ValueError(f"correct must be in (0, 1), got {correct}")
        self.correct, self.temperature = correct, check_temperature(temperature)

    def forward(self, student: Tensor, teacher: Tensor | None, target: Tensor) -> Tensor:
        """The loss of logits ``[N, C]``."""
        return teacher_free(student, target, self.correct, self.temperature)
