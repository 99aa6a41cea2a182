"""The plan of the taps: what was asked for, where it is found in one network, and of what shape it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from kd_lightning.models.anatomy import Anatomy, Several, is_symbol
from kd_lightning.models.taps import LOGITS, install, probe

T = TypeVar("T")


@dataclass(frozen=True)
class TapPlan:
    """What each tap that was asked for stands for in one network.

    Attributes:
        names: Tap as asked -> name of a submodule's tap, or names where the tap is plural.
        shapes: Tap as asked -> shape ``[2, ...]``, or shapes; and of ``logits``.
    """

    names: dict[str, Several]
    shapes: dict[str, tuple[int, ...] | list[tuple[int, ...]]]

    def submodules(self) -> list[str]:
        """All names, for `tapped`."""
        return sorted({name for names in self.names.values() for name in several(names)})

    def picked(self, values: Mapping[str, T]) -> dict[str, T | list[T]]:
        """Values by the names of submodules, as values by the taps that were asked for."""
        return picked(self.names, values)


def several(value: T | list[T]) -> list[T]:
    """One or several, as a list."""
    return value if isinstance(value, list) else [value]


def picked(names: Mapping[str, Several], values: Mapping[str, T]) -> dict[str, T | list[T]]:
    """Values by the names of submodules, as values by the taps that they stand for."""
    return {
        tap: [values[part] for part in name] if isinstance(name, list) else values[name] for tap, name in names.items()
    }


def plan(network: nn.Module, taps: Sequence[str], image_shape: tuple[int, ...]) -> TapPlan:
    """Find what taps stand for in a network, prepare them, and measure their shapes.

    Args:
        network: Any classifier.
        taps: Symbols, and names as `install` takes them.
        image_shape: (C, H, W) of its images.

    Raises:
        ValueError: if a tap stands for nothing in this network.
    """
    wanted = [tap for tap in taps if tap != LOGITS]
    symbols = [tap for tap in wanted if is_symbol(tap)]
    anatomy = Anatomy(network, image_shape) if symbols else None
    names: dict[str, Several] = {
        tap: anatomy.named(tap) if anatomy is not None and tap in symbols else tap for tap in wanted
    }
    submodules = sorted({name for group in names.values() for name in several(group)})
    install(network, submodules)
    shapes = probe(network, submodules, image_shape)
    return TapPlan(names, {**picked(names, shapes), LOGITS: shapes[LOGITS]})


def classifier_of(network: nn.Module, image_shape: tuple[int, ...]) -> nn.Module:
    """The classifier of a network, a function from embeddings to logits.

    Raises:
        ValueError: if it is not known.
    """
    return network.get_submodule(Anatomy(network, image_shape).classifier())
