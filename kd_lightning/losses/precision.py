"""Full precision, also where the run's is lower: a loss of half-precision sums would drown in rounding."""

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def precise(values: Tensor) -> Tensor:
    """Floating-point values in float32 at least; others as they are."""
    return values.float() if values.is_floating_point() and values.dtype.itemsize < 4 else values


def _raised(value: Any) -> Any:
    if isinstance(value, Tensor):
        return precise(value)
    if isinstance(value, list | tuple):
        return type(value)(_raised(part) for part in value)
    return value


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def in_float32(function: Callable[P, R]) -> Callable[P, R]:
    """The function outside autocast, its half-precision tensors (and those in lists) raised to float32 first."""

    @wraps(function)
    def computed(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next(_tensors([*args, *kwargs.values()])).device.type
        raised, named = map(_raised, args), {name: _raised(value) for name, value in kwargs.items()}
        if not torch.is_autocast_enabled(device):
            return function(*raised, **named)
        with torch.autocast(device, enabled=False):
            return function(*raised, **named)

    return computed
