"""What losses of features have in common: pairs of taps, sizes that differ, unit vectors."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.losses.base import Features


def listed(features: Features) -> list[Tensor]:
    """The features of one tap or of several, as a list."""
    return [features] if isinstance(features, Tensor) else list(features)


def paired(student: Features, teacher: Features) -> list[tuple[Tensor, Tensor]]:
    """The student's and the teacher's taps, one by one.

    Raises:
        ValueError: if their numbers differ, or there are none.
    """
    students, teachers = listed(student), listed(teacher)
    if len(students) != len(teachers) or not students:
        raise ValueError(
            f"student and teacher must have as many taps as one another, got {len(students)} and {len(teachers)}: "
            "name the submodules in the term's student and teacher"
        )
    return list(zip(students, teachers, strict=True))


def single(student: Features, teacher: Features) -> tuple[Tensor, Tensor]:
    """The student's and the teacher's only tap.

    Raises:
        ValueError: if one has not exactly one.
    """
    pairs = paired(student, teacher)
    if len(pairs) != 1:
        raise ValueError(f"the loss takes one tap of each network, got {len(pairs)}")
    return pairs[0]


def check_same(student: Tensor, teacher: Tensor) -> None:
    """Let features of one shape pass.

    Raises:
        ValueError: if the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher must have features of one shape, got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}: build the loss to get adapters, or tap elsewhere"
        )


def check_maps(features: Iterable[Tensor]) -> None:
    """Let maps ``[N, C, H, W]`` pass.

    Raises:
        ValueError: if one is not a map.
    """
    for feature in features:
        if feature.ndim != 4:
            raise ValueError(f"features must be maps [N, C, H, W], got {tuple(feature.shape)}: a tap's :map makes one")


def of_one_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps ``[N, ., H, W]``, the larger average-pooled to the size of the smaller; vectors as they are."""
    if a.ndim != 4 or b.ndim != 4 or a.shape[2:] == b.shape[2:]:
        return a, b
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    return F.adaptive_avg_pool2d(a, size), F.adaptive_avg_pool2d(b, size)


def adapted(adapters: Sequence[nn.Module] | nn.ModuleList, features: Features) -> list[Tensor]:
    """Each feature through its adapter; as it is where the loss was not built."""
    values = listed(features)
    return [adapter(value) for adapter, value in zip(adapters, values, strict=True)] if len(adapters) else values


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """Vectors along an axis, divided by their l2 norm; one of norm < 1e-8 becomes 0, with a gradient of 0."""
    large = x.detach().norm(dim=dim, keepdim=True) >= 1e-8
    return F.normalize(torch.where(large, x, 0.0), dim=dim)
