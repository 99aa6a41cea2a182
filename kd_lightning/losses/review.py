"""ReviewKD: the student's deeper layers, fused downwards, are compared with the teacher's shallower ones."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.losses.base import Features, Loss, Shapes, Taps
from kd_lightning.losses.features import check_maps, check_same, of_one_size, paired
from kd_lightning.losses.precision import in_float32

LEVELS = (4, 2, 1)


@in_float32
def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    """(MSE + MSE of pooled 4, 2, 1 weighted by 1/2, 1/4, 1/8) / sum of the weights.

    A level that is not smaller than the map is left out, without halving the weights of those that follow.

    Source: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, sec. 3.3, with the authors' weights.

    Args:
        student: Maps ``[N, C, H, W]``.
        teacher: As the student's.

    Raises:
        ValueError: if the shapes differ after pooling the larger map.
    """
    student, teacher = of_one_size(student, teacher)
    check_same(student, teacher)
    total, weight, weights = (student - teacher).square().mean(), 1.0, 1.0
    for level in LEVELS:
        if level >= student.shape[2]:
            continue
        weight /= 2
        weights += weight
        pooled_s, pooled_t = (F.adaptive_avg_pool2d(maps, level) for maps in (student, teacher))
        total = total + weight * (pooled_s - pooled_t).square().mean()
    return total / weights


class Fusion(nn.Module):
    """Attention-based fusion of a student's map with what comes from the deeper ones (fig. 3 of the paper).

    Args:
        in_chs: Channels of the student's map.
        mid_chs: Channels of what is handed on.
        out_chs: Channels of the teacher's map.
        fuses: Whether there is a deeper one.
    """

    def __init__(self, in_chs: int, mid_chs: int, out_chs: int, fuses: bool) -> None:
        super().__init__()
        reduce = nn.Conv2d(in_chs, mid_chs, 1, bias=False)
        self.reduce = nn.Sequential(reduce, nn.BatchNorm2d(mid_chs))
        expand = nn.Conv2d(mid_chs, out_chs, 3, padding=1, bias=False)
        self.expand = nn.Sequential(expand, nn.BatchNorm2d(out_chs))
        self.attention = nn.Sequential(nn.Conv2d(2 * mid_chs, 2, 1), nn.Sigmoid()) if fuses else None
        for conv in (reduce, expand):
            nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(self, x: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The map to compare, ``[N, out_chs, *size]``, and the one to hand on, ``[N, mid_chs, *size]``."""
        x = self.reduce(x)
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
            weights = self.attention(torch.cat([x, deeper], dim=1))
            x = x * weights[:, :1] + deeper * weights[:, 1:]
        if tuple(x.shape[2:]) != size:
            x = F.interpolate(x, size, mode="nearest")
        return self.expand(x), x


def as_map(feature: Tensor) -> Tensor:
    """Vectors ``[N, D]`` as maps ``[N, D, 1, 1]``; maps as they are."""
    return feature[:, :, None, None] if feature.ndim == 2 else feature


class ReviewKD(Loss):
    """Attention-based fusion from deep to shallow, then the hierarchical context loss, summed over the taps.

    HCL = (MSE + 1/2 MSE pooled to 4x4 + 1/4 to 2x2 + 1/8 to 1x1) / sum of the weights, where levels that are not
    smaller than the map are left out. The paper adds the embedding, as a 1x1 map, to the stages: taps ``[stages,
    embedding]``.

    Source: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021.

    Args:
        max_channels: The fused maps have as many channels as the student's deepest tap, at most so many.
    """

    student_tap: ClassVar[Taps] = "stages"
    teacher_tap: ClassVar[Taps | None] = "stages"

    def __init__(self, max_channels: int = 512) -> None:
        super().__init__()
        if max_channels < 1:
            raise ValueError(f"max_channels must be >= 1, got {max_channels}")
        self.max_channels = max_channels
        self.fusions = nn.ModuleList()

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Make a fusion for each tap."""
        mid = min(self.max_channels, student[-1][1])
        self.fusions = nn.ModuleList(
            Fusion(s[1], mid, t[1], fuses=i < len(student) - 1)
            for i, (s, t) in enumerate(zip(student, teacher, strict=False))  # forward says where their numbers differ
        )

    def forward(self, student: Features, teacher: Features, target: Tensor) -> Tensor:
        """The loss of maps ``[N, C, H, W]``, from shallow to deep; the labels are not looked at."""
        pairs = [(as_map(s), as_map(t)) for s, t in paired(student, teacher)]
        check_maps(feature for pair in pairs for feature in pair)
        if not len(self.fusions):
            return torch.stack([hierarchical_context(s, t) for s, t in pairs]).sum()
        values, deeper = [], None
        for fusion, (s, t) in zip(reversed(self.fusions), reversed(pairs), strict=True):
            fused, deeper = fusion(s, deeper, (t.shape[2], t.shape[3]))
            values.append(hierarchical_context(fused, t))
        return torch.stack(values).sum()
