"""SRRL: the teacher's own classifier judges the student's features."""

from typing import ClassVar

from torch import Tensor, nn

from kd_lightning.losses.adapters import conv_bn
from kd_lightning.losses.base import Features, Head, Loss, Shapes, Taps
from kd_lightning.losses.features import check_maps, check_same, single
from kd_lightning.losses.precision import in_float32


@in_float32
def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of (s - t)^2 over all entries of two tensors of one shape.

    Raises:
        ValueError: if the shapes differ.
    """
    check_same(student, teacher)
    return (student - teacher).square().mean()


class SRRL(Loss):
    """Mean (r(s) - t)^2 + mean (h(r(s)) - h(t))^2, r the pooled adapted feature, h the teacher's classifier.

    The adapter is a 1x1 convolution with batch normalisation and ReLU; t is the teacher's embedding. The classifier is
    fixed; the gradient passes through it.

    Source: Yang et al., "Knowledge Distillation via Softmax Regression Representation Learning", ICLR 2021, eq. 3 and
    6, the latter with the squared error of logits.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"teacher_classifier"})
    student_tap: ClassVar[Taps] = "last_map"
    teacher_tap: ClassVar[Taps | None] = "embedding"

    def __init__(self) -> None:
        super().__init__()
        self.adapter: nn.Module = nn.Identity()

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Make the adapter.

        Raises:
            ValueError: if the student's tap is no map, or the teacher's no vector.
        """
        if len(student) != 1 or len(teacher) != 1 or len(student[0]) != 4 or len(teacher[0]) != 2:
            raise ValueError(
                "SRRL needs one map [N, C, H, W] of the student and the embedding [N, D] of the teacher, got "
                f"{list(student)} and {list(teacher)}"
            )
        self.adapter = nn.Sequential(conv_bn(student[0][1], teacher[0][1]), nn.ReLU())

    def forward(self, student: Features, teacher: Features, target: Tensor, teacher_classifier: Head) -> Tensor:
        """The loss of a map ``[N, C, H, W]`` and an embedding ``[N, D]``; the labels are not looked at."""
        s, t = single(student, teacher)
        check_maps((s,))
        embedding = self.adapter(s).flatten(2).mean(dim=2)
        judged = squared_error(teacher_classifier(embedding), teacher_classifier(t).detach())
        return squared_error(embedding, t) + judged
