"""A network that stops on the way: the layers that would run after a tap are not there."""

from collections.abc import Sequence

import torch
from torch import nn

from kd_lightning.models.taps import at_rest, place, tapped
from kd_lightning.models.trace import Run


def later(runs: Sequence[Run], at: str) -> list[str]:
    """Names of the largest submodules that run after one, and not around it.

    Args:
        runs: Of the whole network, see `traced`.
        at: Name of a submodule that runs.
    """

    def within(name: str, other: str) -> bool:
        return name.startswith(f"{other}.")

    order = [run.name for run in runs]
    done = order[: order.index(at) + 1]
    rest = [name for name in order[len(done) :] if not any(within(first, name) for first in done)]
    return [name for name in rest if not any(within(name, other) for other in rest)]


class Skipped(nn.Module):
    """Stands where a layer was: gives back the first of its inputs."""

    def forward(self, x: object, *args: object, **kwargs: object) -> object:
        """Anything to itself."""
        return x


def stopped(network: nn.Module, runs: Sequence[Run], at: str, image_shape: tuple[int, ...]) -> nn.Module:
    """The network itself, without the layers that run after a tap; what it then returns means nothing.

    Args:
        network: Changed in place.
        runs: Of the whole network, see `traced`.
        at: Name of a tap.
        image_shape: (C, H, W) of its images.

    Raises:
        ValueError: if it does not run without them.
    """
    for name in later(runs, place(at).module):
        network.set_submodule(name, Skipped())
    parameter = next(network.parameters())
    with at_rest(network), tapped(network, [at]):
        try:
            network(torch.zeros(2, *image_shape, device=parameter.device, dtype=parameter.dtype))
        except (RuntimeError, ValueError, AssertionError, TypeError, AttributeError) as error:
            # What a foreign forward raises on odd shapes.
            raise ValueError(
                f"only: {type(network).__name__} does not run without what follows {at!r}: {error}"
            ) from error
    return network
