"""Multi-level logit distillation: instances, batch and classes, at several temperatures."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses.base import Loss
from kd_lightning.losses.logits import check_logits, check_temperature
from kd_lightning.losses.precision import in_float32
from kd_lightning.losses.soft_target import soft_target

PARTS = ("instance", "batch", "class")


@in_float32
def batch_relation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """|P_t P_t^T - P_s P_s^T|^2 / N of the probabilities ``[N, C]`` at T: how samples resemble one another."""
    p_s, p_t = F.softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1)
    return (p_t @ p_t.T - p_s @ p_s.T).square().sum() / len(p_s)


@in_float32
def class_relation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """|P_t^T P_t - P_s^T P_s|^2 / C of the probabilities ``[N, C]`` at T: how classes resemble one another."""
    p_s, p_t = F.softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1)
    return (p_t.T @ p_t - p_s.T @ p_s).square().sum() / p_s.shape[1]


LEVELS = dict(zip(PARTS, (soft_target, batch_relation, class_relation), strict=True))


class MultiLevelKD(Loss):
    """Soft targets (instance), sample similarities (batch) and class similarities (class), each summed over T.

    instance: sum_T T^2 KL; batch: sum_T |P_t P_t^T - P_s P_s^T|^2 / N; class: sum_T |P_t^T P_t - P_s^T P_s|^2 / C. The
    last two are over the samples of the batch: on several devices, each device's own.

    Source: Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023, eq. 4 to 9.

    Args:
        temperatures: Each T > 0.
        parts: Which of ``instance``, ``batch`` and ``class``; their sum is the loss.
    """

    def __init__(self, temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0), parts: Sequence[str] = PARTS) -> None:
        super().__init__()
        if not temperatures:
            raise ValueError("temperatures must hold at least one temperature, got none")
        if not parts or set(parts) - set(PARTS) or len(set(parts)) != len(parts):
            raise ValueError(f"parts must be some of {list(PARTS)}, each once, got {list(parts)}")
        self.temperatures = [check_temperature(temperature) for temperature in temperatures]
        self.parts = list(parts)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``[N, C]`` of both; the labels are not looked at."""
        check_logits(student, teacher)
        values = [LEVELS[part](student, teacher, t) for part in self.parts for t in self.temperatures]
        return torch.stack(values).sum()
