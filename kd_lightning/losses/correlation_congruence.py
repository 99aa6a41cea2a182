"""Correlation congruence: how samples relate, by a kernel or one to the next."""

import math
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from kd_lightning.losses.base import Features, Loss, Shapes, Taps
from kd_lightning.losses.features import adapted, check_same, paired, unit
from kd_lightning.losses.precision import in_float32

Form = Literal["kernel", "consecutive"]


def taylor_rbf(embedding: Tensor, gamma: float, order: int) -> Tensor:
    """Gaussian RBF kernel ``[N, N]`` of unit rows, by its Taylor series: sum_p exp(-2 gamma) (2 gamma)^p / p! (x y)^p.

    Source: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, eq. 7.
    """
    rows = unit(embedding)
    cosine = rows @ rows.T
    terms = [(2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(terms).sum(dim=0)


@in_float32
def kernel_congruence(student: Tensor, teacher: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Mean over N^2 of (K_s - K_t)^2, K the Taylor RBF kernel of unit rows.

    Source: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, eq. 4 and 7.

    Args:
        student: ``[N, ...]``, flattened.
        teacher: ``[N, ...]``, flattened; the length may differ.
        gamma: Of the kernel, > 0.
        order: Of the Taylor series, >= 1.
    """
    k_s, k_t = (taylor_rbf(f.flatten(1), gamma, order) for f in (student, teacher))
    return (k_s - k_t).square().mean()


@in_float32
def consecutive_congruence(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over i = 1 ... N - 1 of sum_D d_i d_(i+1), d = |s - t|; 0 for a single sample.

    What the protocol of Tian et al., "Contrastive Representation Distillation", ICLR 2020, runs under the name CC.

    Args:
        student: ``[N, ...]``, flattened.
        teacher: As the student's.

    Raises:
        ValueError: if the shapes differ.
    """
    check_same(student, teacher)
    d = (student - teacher).flatten(1).abs()
    return (d[:-1] * d[1:]).sum() / max(len(d) - 1, 1)


class CorrelationCongruence(Loss):
    """CC: mean (K_s - K_t)^2 of Taylor RBF kernels, or mean of products of consecutive samples' differences.

    kernel: mean over N^2 of (K_s - K_t)^2, K = sum_p exp(-2 gamma) (2 gamma)^p / p! (x y)^p on unit rows; consecutive:
    mean over N - 1 of sum_D d_i d_(i+1), d = |s - t|. Both networks' features pass a trained linear embedding. It is
    over the samples of the batch: on several devices, each device's own.

    Sources: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, eq. 4 and 7; for
    ``consecutive`` the protocol of Tian et al., ICLR 2020, whose weight 0.02 belongs to that form.

    Args:
        form: ``kernel`` or ``consecutive``; the latter depends on the order of the batch.
        gamma: Of the kernel, > 0.
        order: Of the Taylor series, >= 1.
        dim: Length of the embedding, >= 1.
    """

    student_tap: ClassVar[Taps] = "embedding"
    teacher_tap: ClassVar[Taps | None] = "embedding"

    def __init__(self, form: Form = "kernel", gamma: float = 0.4, order: int = 2, dim: int = 128) -> None:
        super().__init__()
        if form not in get_args(Form):
            raise ValueError(f"form must be one of {list(get_args(Form))}, got {form!r}")
        if not 0 < gamma < float("inf"):
            raise ValueError(f"gamma must be > 0 and finite, got {gamma}")
        if order < 1 or dim < 1:
            raise ValueError(f"order and dim must be >= 1, got {order} and {dim}")
        self.form, self.gamma, self.order, self.dim = form, gamma, order, dim
        self.student_embeddings, self.teacher_embeddings = nn.ModuleList(), nn.ModuleList()

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Make a linear embedding for each tap of both networks."""
        self.student_embeddings, self.teacher_embeddings = (
            nn.ModuleList(nn.Sequential(nn.Flatten(1), nn.Linear(math.prod(shape[1:]), self.dim)) for shape in shapes)
            for shapes in (student, teacher)
        )

    def forward(self, student: Features, teacher: Features, target: Tensor) -> Tensor:
        """The loss of features ``[N, ...]``; the labels are not looked at."""
        students, teachers = adapted(self.student_embeddings, student), adapted(self.teacher_embeddings, teacher)
        values = [
            kernel_congruence(s, t, self.gamma, self.order) if self.form == "kernel" else consecutive_congruence(s, t)
            for s, t in paired(students, teachers)
        ]
        return torch.stack(values).sum()
