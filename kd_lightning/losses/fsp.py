"""FSP: the flow of solution procedure, from one layer to the next."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from kd_lightning.losses.base import Features, Loss, Shapes, Taps
from kd_lightning.losses.features import check_maps, check_same, listed, of_one_size, paired
from kd_lightning.losses.precision import in_float32


def flow(first: Tensor, second: Tensor) -> Tensor:
    """Gram matrices ``[N, C1, C2]`` between two layers' maps, divided by H W; the larger is average-pooled first."""
    first, second = (maps.flatten(2) for maps in of_one_size(first, second))
    return first @ second.mT / first.shape[2]


@in_float32
def solution_flow(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Sum over consecutive taps of the mean squared difference of their Gram matrices.

    Source: Yim et al., "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
    Learning", CVPR 2017, eq. 1 and 2, as a mean.

    Args:
        student: Two maps ``[N, C, H, W]`` or more, in the order of the network.
        teacher: As many, with the same channels.

    Raises:
        ValueError: if there are fewer than two, or their channels differ.
    """
    paired(student, teacher)
    if len(student) < 2:
        raise ValueError(f"FSP needs at least 2 taps of each network, got {len(student)}")
    check_maps([*student, *teacher])
    values = []
    for i in range(len(student) - 1):
        s, t = flow(student[i], student[i + 1]), flow(teacher[i], teacher[i + 1])
        check_same(s, t)
        values.append((s - t).square().mean())
    return torch.stack(values).sum()


class FSP(Loss):
    """Sum over consecutive taps of the mean squared difference of their Gram matrices, each divided by H W.

    The larger of two consecutive maps is average-pooled to the smaller. Student and teacher need the same channels, so
    two networks of one family and width.

    Source: Yim et al., "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
    Learning", CVPR 2017, eq. 1 and 2, as a mean.
    """

    student_tap: ClassVar[Taps] = "stem+stages"
    teacher_tap: ClassVar[Taps | None] = "stem+stages"

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Check the channels.

        Raises:
            ValueError: if they differ.
        """
        channels, theirs = [shape[1] for shape in student], [shape[1] for shape in teacher]
        if channels != theirs:
            raise ValueError(
                f"FSP compares Gram matrices, so student and teacher must have the same channels at their taps, got "
                f"{channels} and {theirs}: choose networks of one family and width, or another loss"
            )

    def forward(self, student: Features, teacher: Features, target: Tensor) -> Tensor:
        """The loss of two or more maps ``[N, C, H, W]`` of each; the labels are not looked at."""
        return solution_flow(listed(student), listed(teacher))
