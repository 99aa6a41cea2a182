"""OFA: soft targets with the target class enhanced, between architectures that see differently."""

import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses.base import Loss
from kd_lightning.losses.logits import check_logits, check_temperature, largest_class
from kd_lightning.losses.precision import in_float32


@in_float32
def target_enhanced(
    student: Tensor, teacher: Tensor, target: Tensor, eps: float = 1.5, temperature: float = 1.0
) -> Tensor:
    """-mean sum_c ((p_t + 1_y)^eps - 1_y) log p_s of softmax(z / T), without T^2.

    Source: Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation",
    NeurIPS 2023, eq. 6.

    Args:
        student: Logits ``[N, C]``.
        teacher: Logits ``[N, C]``.
        target: Class indices, int64 ``[N]``; of a mixed target, float ``[N, C]``, its largest class is used.
        eps: Exponent > 0; 1 is the cross entropy with the teacher's probabilities.
        temperature: T > 0.

    Raises:
        ValueError: if the logits differ in shape.
    """
    check_logits(student, teacher)
    own = F.one_hot(largest_class(target), student.shape[1]).to(student.dtype)
    p_t, log_p_s = F.softmax(teacher / temperature, dim=1), F.log_softmax(student / temperature, dim=1)
    return -(((p_t + own) ** eps - own) * log_p_s).sum(dim=1).mean()


class OFA(Loss):
    """-mean sum_c ((p_t + 1_y)^eps - 1_y) log p_s of softmax(z / T): the target class counts more.

    A cross entropy: its minimum is not 0, and not at equality. A mixed target is taken by its largest class.

    Source: Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation",
    NeurIPS 2023, eq. 6.

    Args:
        eps: Exponent > 0; 1 is the cross entropy with the teacher's probabilities.
        temperature: T > 0.
    """

    def __init__(self, eps: float = 1.5, temperature: float = 1.0) -> None:
        super().__init__()
        if not 0 < eps < float("inf"):
            raise ValueError(f"eps must be > 0 and finite, got {eps}")
        self.eps, self.temperature = eps, check_temperature(temperature)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``[N, C]`` of both."""
        return target_enhanced(student, teacher, target, self.eps, self.temperature)
