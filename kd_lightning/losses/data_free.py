"""What generated images are to be like, by a teacher's answers: certain, strongly activating, balanced, hard."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses.base import Loss, Taps
from kd_lightning.losses.logits import check_logits
from kd_lightning.losses.precision import in_float32
from kd_lightning.losses.soft_target import soft_target

Measure = Literal["l1", "kl"]
Labels = Literal["argmax", "drawn"]
NOBODY: Taps = ()  # the student is not asked


@in_float32
def one_hot(teacher: Tensor, target: Tensor | None = None) -> Tensor:
    """Mean of -log p_t(y), small where the teacher is sure of its answer.

    Source: Chen et al., "Data-Free Learning of Student Networks", ICCV 2019 (DAFL), eq. 3, where y is the teacher's own
    largest class; with labels of one's own it is the classification term of Yin et al., "Dreaming to Distill", CVPR
    2020, eq. 1.

    Args:
        teacher: Logits ``[N, C]``.
        target: Classes y, int64 ``[N]``; None for the largest of each row.

    Returns:
        A scalar >= 0.
    """
    return F.cross_entropy(teacher, teacher.detach().argmax(dim=1) if target is None else target)


@in_float32
def activation(feature: Tensor) -> Tensor:
    """Minus the mean absolute feature, as real images excite a teacher more than noise does.

    Source: DAFL (Chen et al., ICCV 2019), eq. 4, on the features before the classifier; the mean over all elements, as
    the authors' code takes it.

    Args:
        feature: ``[N, ...]``.

    Returns:
        A scalar <= 0.
    """
    return -feature.abs().mean()


@in_float32
def class_balance(teacher: Tensor) -> Tensor:
    """Sum over classes of q log q in nats, q the mean of p_t over the batch: minus the entropy of its classes.

    Source: DAFL (Chen et al., ICCV 2019), eq. 5, information entropy; the authors' code takes log10, so that its weight
    is 2.303 times smaller here.

    Args:
        teacher: Logits ``[N, C]``.

    Returns:
        A scalar in [-log C, 0], the least where all classes are equally frequent.
    """
    log_q = torch.logsumexp(F.log_softmax(teacher, dim=1), dim=0) - torch.log(teacher.new_tensor(len(teacher)))
    return (log_q.exp() * log_q).sum()


@in_float32
def discrepancy(student: Tensor, teacher: Tensor, measure: Measure = "l1", temperature: float = 1.0) -> Tensor:
    """Minus the distance of both answers: least where the student is most wrong.

    Sources: ``l1``, the mean absolute difference of logits: Fang et al., "Data-Free Adversarial Distillation", 2019,
    eq. 4; ``kl``, T^2 KL(p_t || p_s): Choi et al., "Data-Free Network Quantization with Adversarial Knowledge
    Distillation", CVPR Workshops 2020 (DFQ), eq. 8.

    Args:
        student: Logits ``[N, C]``.
        teacher: Logits ``[N, C]``.
        measure: Of the distance.
        temperature: T > 0 of ``kl``.

    Returns:
        A scalar <= 0.

    Raises:
        ValueError: if the two have different shapes.
    """
    check_logits(student, teacher)
    return -(student - teacher).abs().mean() if measure == "l1" else -soft_target(student, teacher, temperature)


class OneHot(Loss):
    """The teacher is to be sure of a generated image: mean of -log p_t(y).

    Sources: Chen et al., "Data-Free Learning of Student Networks", ICCV 2019 (DAFL), eq. 3; Yin et al., "Dreaming to
    Distill", CVPR 2020, eq. 1, for ``drawn``.

    Args:
        labels: Of what: ``argmax``, whatever it thinks (DAFL); ``drawn``, of the label that the image was drawn for,
            which only a conditional generator can follow.
    """

    student_tap: ClassVar[Taps] = NOBODY

    def __init__(self, labels: Labels = "argmax") -> None:
        super().__init__()
        if labels not in ("argmax", "drawn"):
            raise ValueError(f"labels must be 'argmax' or 'drawn', got {labels!r}")
        self.labels = labels

    def forward(self, student: object, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of the teacher's logits ``[N, C]`` and the drawn labels, int64 ``[N]``."""
        return one_hot(teacher, target if self.labels == "drawn" else None)


class Activation(Loss):
    """A generated image is to excite the teacher: minus the mean absolute feature.

    Source: Chen et al., "Data-Free Learning of Student Networks", ICCV 2019 (DAFL), eq. 4.
    """

    student_tap: ClassVar[Taps] = NOBODY
    teacher_tap: ClassVar[Taps | None] = "embedding"

    def forward(self, student: object, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of the teacher's features ``[N, ...]``; the labels are not looked at."""
        return activation(teacher)


class ClassBalance(Loss):
    """A batch of generated images is to be of all classes: sum of q log q, q the mean of p_t over the batch.

    It is over the samples of the batch: on several devices, each device's own. The logarithm is the natural one, where
    the authors' code takes log10: their weight of 5 is 2.17 here.

    Source: Chen et al., "Data-Free Learning of Student Networks", ICCV 2019 (DAFL), eq. 5.
    """

    student_tap: ClassVar[Taps] = NOBODY

    def forward(self, student: object, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of the teacher's logits ``[N, C]``; the labels are not looked at."""
        return class_balance(teacher)


class Discrepancy(Loss):
    """A generated image is to be one that the student gets wrong: minus the mean of |z_s - z_t|, or T^2 KL(p_t || p_s).

    Sources: Fang et al., "Data-Free Adversarial Distillation", 2019, eq. 4, for ``l1``; Choi et al., "Data-Free Network
    Quantization with Adversarial Knowledge Distillation", CVPR Workshops 2020 (DFQ), eq. 8, for ``kl``.

    Args:
        measure: ``l1``, the distance of the logits, or ``kl``.
        temperature: T > 0 of ``kl``.
    """

    def __init__(self, measure: Measure = "l1", temperature: float = 1.0) -> None:
        super().__init__()
        if measure not in ("l1", "kl"):
            raise ValueError(f"measure must be 'l1' or 'kl', got {measure!r}")
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        self.measure, self.temperature = measure, temperature

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``[N, C]`` of both; the labels are not looked at."""
        return discrepancy(student, teacher, self.measure, self.temperature)
