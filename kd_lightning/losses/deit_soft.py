"""The soft distillation loss as the reference code of DeiT has it, for exact comparison."""

from torch import Tensor

from kd_lightning.losses.base import Loss
from kd_lightning.losses.logits import check_temperature
from kd_lightning.losses.soft_target import soft_target


class ReferenceSoftTarget(Loss):
    """T^2 KL(p_t || p_s), summed over the classes and the batch, divided by batch x classes.

    That is `SoftTarget` divided by the number of classes C: on ImageNet 1000 times smaller, so a weight that is stated
    for the one does not serve the other. The labels are not looked at.

    Source: the reference code of Touvron et al., "Training data-efficient image transformers & distillation through
    attention", ICML 2021, whose eq. 2 has the sum over the classes, as `SoftTarget` has.

    Args:
        temperature: T > 0; 3 in the paper, 1 is the default of the reference code.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``[N, C]`` of both; the labels are not looked at."""
        return soft_target(student, teacher, self.temperature) / student.shape[1]
