"""NKD: the target class as it is, the other classes renormalised."""

import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses.base import Loss
from kd_lightning.losses.logits import check_logits, check_temperature, check_weight, largest_class, others
from kd_lightning.losses.precision import in_float32


@in_float32
def normalized_distillation(
    student: Tensor, teacher: Tensor, target: Tensor, gamma: float = 1.5, temperature: float = 1.0
) -> Tensor:
    """-mean p_t[y] log p_s[y] (at T = 1) + gamma T^2 x soft cross entropy over the other classes, renormalised.

    Source: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
    Loss and Customized Soft Labels", ICCV 2023, eq. 6.

    Args:
        student: Logits ``[N, C]``.
        teacher: Logits ``[N, C]``.
        target: Class indices, int64 ``[N]``; of a mixed target, float ``[N, C]``, its largest class is used.
        gamma: Weight of the other classes, >= 0.
        temperature: T > 0, of the other classes.

    Raises:
        ValueError: if the logits differ in shape, or there are fewer than 2 classes.
    """
    check_logits(student, teacher, classes=2)
    label = largest_class(target)
    own = label[:, None]
    p_t = F.softmax(teacher, dim=1).gather(1, own)
    log_p_s = F.log_softmax(student, dim=1).gather(1, own)
    rest_t = F.softmax(others(teacher, label) / temperature, dim=1)
    log_rest_s = F.log_softmax(others(student, label) / temperature, dim=1)
    return -(p_t * log_p_s).mean() - gamma * temperature**2 * (rest_t * log_rest_s).sum(dim=1).mean()


class NKD(Loss):
    """-mean p_t[y] log p_s[y] (at T = 1) + gamma T^2 x soft cross entropy over the other classes, renormalised.

    A cross entropy: at equality it is the teacher's entropy, not 0. A mixed target is taken by its largest class.

    Source: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
    Loss and Customized Soft Labels", ICCV 2023, eq. 6.

    Args:
        gamma: Weight of the other classes, >= 0.
        temperature: T > 0, of the other classes.
    """

    def __init__(self, gamma: float = 1.5, temperature: float = 1.0) -> None:
        super().__init__()
        self.gamma, self.temperature = check_weight("gamma", gamma), check_temperature(temperature)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``[N, C]`` of both."""
        return normalized_distillation(student, teacher, target, self.gamma, self.temperature)
