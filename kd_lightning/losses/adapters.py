"""Adapters: what makes a student's feature comparable with a teacher's, shaped by the two."""

from typing import Literal

from torch import Tensor, nn

from kd_lightning.losses.base import Shapes
from kd_lightning.losses.features import of_one_size

Adapter = Literal["none", "conv1x1", "conv_bn_relu", "linear"]
Shape = tuple[int, ...]


class OfOneSize(nn.Module):
    """Average-pools a map that is larger than a given size; a smaller one stays.

    Args:
        size: (height, width).
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to ``[N, C, min(H, height), min(W, width)]``."""
        return of_one_size(x, x.new_empty(1, 1, *self.size))[0]


def conv1x1(in_chs: int, out_chs: int) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(in_chs, out_chs, 1, bias=False)


def conv_bn(in_chs: int, out_chs: int) -> nn.Sequential:
    """A 1x1 convolution without bias, and batch normalisation."""
    return nn.Sequential(conv1x1(in_chs, out_chs), nn.BatchNorm2d(out_chs))


def connector(student: Shape, teacher: Shape) -> nn.Sequential:
    """Average pooling of a larger map, then `conv_bn`, from the shapes of two maps ``[N, C, H, W]``.

    Raises:
        ValueError: if one is not a map.
    """
    if len(student) != 4 or len(teacher) != 4:
        raise ValueError(f"connectors are for maps [N, C, H, W], got {student} and {teacher}: a tap's :map makes one")
    return nn.Sequential(OfOneSize((teacher[2], teacher[3])), conv_bn(student[1], teacher[1]))


def connectors(student: Shapes, teacher: Shapes) -> nn.ModuleList:
    """A `connector` for each pair of taps; where their numbers differ, the loss's forward says so.

    Raises:
        ValueError: if one is not a map.
    """
    return nn.ModuleList(connector(s, t) for s, t in zip(student, teacher, strict=False))


def resizing_conv(student: Shape, teacher: Shape) -> nn.Module:
    """The convolution of the regressor of `conv_bn_relu`, from the sizes of two maps ``[N, C, H, W]``."""
    in_chs, out_chs = student[1], teacher[1]
    if all(s == 2 * t for s, t in zip(student[2:], teacher[2:], strict=True)):
        return nn.Conv2d(in_chs, out_chs, 3, stride=2, padding=1)
    if all(2 * s == t for s, t in zip(student[2:], teacher[2:], strict=True)):
        return nn.ConvTranspose2d(in_chs, out_chs, 4, stride=2, padding=1)
    return nn.Sequential(OfOneSize((teacher[2], teacher[3])), nn.Conv2d(in_chs, out_chs, 1))


def adapter(kind: Adapter, student: Shape, teacher: Shape) -> nn.Module:
    """A trainable map from a student's feature to a teacher's.

    Args:
        kind: ``none``; ``conv1x1`` (no bias) after average pooling where the student's map is larger;
            ``conv_bn_relu``: convolution, batch normalisation, ReLU, where the convolution is 1x1, or 3x3 with stride 2
            for a map twice as large as the teacher's, or transposed 4x4 with stride 2 for one half as large;
            ``linear`` for vectors ``[N, D]`` and sequences ``[N, L, D]``.
        student: Shape ``[N, C, H, W]`` or ``[N, ..., D]``.
        teacher: Shape of the same kind.

    Raises:
        ValueError: if the kind is unknown, or does not go with the shapes.
    """
    if len(student) != len(teacher):
        raise ValueError(f"student and teacher must both be maps or both be vectors, got {student} and {teacher}")
    if kind == "none":
        channels = 1 if len(student) == 4 else -1
        if student[channels] != teacher[channels]:
            raise ValueError(
                f"adapter none needs as many channels in both, got {student[channels]} and {teacher[channels]}: "
                "choose another"
            )
        return nn.Identity()
    if kind == "linear":
        if len(student) == 4:
            raise ValueError(f"adapter linear is for vectors, got maps {student}: take conv1x1 or conv_bn_relu")
        return nn.Linear(student[-1], teacher[-1])
    if kind not in ("conv1x1", "conv_bn_relu"):
        raise ValueError(f"adapter must be none, conv1x1, conv_bn_relu or linear, got {kind!r}")
    if len(student) != 4:
        raise ValueError(f"adapter {kind} is for maps [N, C, H, W], got {student}: take linear")
    if kind == "conv1x1":
        return nn.Sequential(OfOneSize((teacher[2], teacher[3])), conv1x1(student[1], teacher[1]))
    return nn.Sequential(resizing_conv(student, teacher), nn.BatchNorm2d(teacher[1]), nn.ReLU())
