"""DIST: correlation of predictions within samples and within classes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses.base import Loss
from kd_lightning.losses.logits import check_logits, check_temperature, check_weight
from kd_lightning.losses.precision import in_float32


def pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Pearson's correlation along an axis, in [-1, 1]; 0, with a gradient of 0, where one of the two is constant.

    1e-8 is added to the product of the norms.
    """
    # Without this, rounding would correlate, and the gradient at a constant be about 1e8.
    varied = [(x != x.narrow(dim, 0, 1)).any(dim=dim, keepdim=True) for x in (a, b)]
    a, b = (torch.where(varied[0] & varied[1], x - x.mean(dim=dim, keepdim=True), 0.0) for x in (a, b))
    norms: Tensor = torch.linalg.vector_norm(a, dim=dim) * torch.linalg.vector_norm(b, dim=dim)
    products: Tensor = (a * b).sum(dim=dim)
    return products / (norms + 1e-8)


@in_float32
def correlation(
    student: Tensor, teacher: Tensor, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """T^2 [beta (1 - mean over rows of Pearson) + gamma (1 - mean over columns of Pearson)] of softmax(z / T).

    Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, eq. 9 and 10.

    Args:
        student: Logits ``[N, C]``.
        teacher: Logits ``[N, C]``.
        beta: Weight of the inter-class relation (within a sample), >= 0.
        gamma: Weight of the intra-class relation (over the samples of the batch), >= 0.
        temperature: T > 0.

    Raises:
        ValueError: if the logits differ in shape.
    """
    check_logits(student, teacher)
    p_s, p_t = F.softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1)
    between, within = 1 - pearson(p_s, p_t, dim=1).mean(), 1 - pearson(p_s, p_t, dim=0).mean()
    return temperature**2 * (beta * between + gamma * within)


class DIST(Loss):
    """T^2 [beta (1 - mean over rows of Pearson) + gamma (1 - mean over columns of Pearson)] of softmax(z / T).

    The columns are over the samples of the batch: on several devices, each device's own. A constant row or column
    correlates with nothing.

    Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, eq. 9 and 10.

    Args:
        beta: Weight of the relation between classes within a sample, >= 0.
        gamma: Weight of the relation between samples within a class, >= 0.
        temperature: T > 0; 4 on CIFAR-100, 1 on ImageNet.
    """

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        self.beta, self.gamma = check_weight("beta", beta), check_weight("gamma", gamma)
        self.temperature = check_temperature(temperature)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``[N, C]`` of both; the labels are not looked at."""
        return correlation(student, teacher, self.beta, self.gamma, self.temperature)
