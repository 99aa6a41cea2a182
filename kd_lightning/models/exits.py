"""One network with exits on the way, which answer from the first layers alone; the deepest answer teaches them."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

from torch import Tensor, nn

from kd_lightning.models.anatomy import Anatomy, HasStemInfo, is_symbol
from kd_lightning.models.network import Network
from kd_lightning.models.peer_weights import EXITS, NETWORK
from kd_lightning.models.tap_plan import several
from kd_lightning.models.taps import install, place, probe, tapped
from kd_lightning.models.token_maps import HasOutputFormat, HasPatches, prefix_tokens
from kd_lightning.models.trace import Run
from kd_lightning.seeds import run_seed, seeded

Recipe = Network | nn.Module | Mapping[str, Any]
SIDE = 32  # pixels of the images by which sizes are found, where the network does not say its own
SQUEEZE = 4  # channels of the deepest features over those inside a bottleneck


@runtime_checkable
class HasExits(Protocol):
    """A network whose branches are exits of its own: each has an embedding and a last map, as the whole has."""

    def branch_taps(self) -> Sequence[str]:
        """Names of the submodules that give the exits' logits."""

    def exit_taps(self, branch: str) -> Mapping[str, str]:
        """What symbols stand for in an exit, by the name of the submodule that gives its logits."""


class Skipped(nn.Module):
    """Stands where a layer was: gives back the first of its inputs."""

    def forward(self, x: object, *args: object, **kwargs: object) -> object:
        """Anything to itself."""
        return x


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


def bottleneck(in_chs: int, out_chs: int, factor: int) -> nn.Sequential:
    """Three convolutions from a stage's map to the size and channels of the deepest, each with normalisation and ReLU.

    1x1 to a quarter of ``out_chs``; k x k with stride k, where k is ``factor``, or 3 x 3 with stride 1 where that is 1;
    1x1 to ``out_chs``.

    Args:
        in_chs: Channels of the stage.
        out_chs: Channels of the deepest features.
        factor: Height of the stage's map over that of the last, >= 1.
    """
    mid = max(1, out_chs // SQUEEZE)
    kernel = 3 if factor == 1 else factor
    layers: list[nn.Module] = []
    for first, last, size, stride in ((in_chs, mid, 1, 1), (mid, mid, kernel, factor), (mid, out_chs, 1, 1)):
        padding = 1 if size > stride and size == 3 else 0
        layers += [
            nn.Conv2d(first, last, size, stride, padding, bias=False),
            nn.BatchNorm2d(last),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


class Exit(nn.Module):
    """A `bottleneck`, the mean over the positions, and a linear classifier.

    Args:
        in_chs: Channels of the stage.
        out_chs: Channels of the deepest features.
        factor: Height of the stage's map over that of the last, >= 1.
        num_classes: C.
    """

    def __init__(self, in_chs: int, out_chs: int, factor: int, num_classes: int) -> None:
        super().__init__()
        self.bottleneck = bottleneck(in_chs, out_chs, factor)
        self.fc = nn.Linear(out_chs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """A map ``[N, in_chs, H, W]`` to logits ``[N, C]``."""
        logits: Tensor = self.fc(self.bottleneck(x).mean(dim=(2, 3)))
        return logits


class MultiExitNetwork(nn.Module):
    """A network, and an exit after each of its stages but the last.

    The answer is the network's own, the deepest; the exits' are heard by taps. With ``only`` the answer is one exit's,
    and the layers behind it are not there. An exit's own ``embedding``, ``last_map`` and ``last_stage`` are what goes
    into its classifier and what its bottleneck gives; they have the channels of the deepest embedding. Any other tap of
    an exit is the network's.

    Source: Zhang et al., "Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self
    Distillation", ICCV 2019, section 3; the bottleneck's convolutions (`bottleneck`) are this package's.

    Args:
        network: Recipe of the network, or its fields; in Python also a module, of which a copy is taken.
        exits: Taps after which an exit stands, from shallow to deep: ``stage:1`` or names of submodules that give maps
            or a transformer's tokens; None for all stages but the last.
        only: The exit that answers alone, counted from 1; None for all of it.
        num_classes: Number of classes, which comes from the data.
        in_chans: Channels of the images.
        image_size: Side of the images by which the sizes of maps are found, in pixels.

    Raises:
        ValueError: if an argument is out of range, or the network has no stages, no classifier that is known, or no map
            where an exit should be.
    """

    def __init__(
        self,
        network: Recipe,
        exits: Sequence[str] | None = None,
        only: int | None = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        image_size: int = SIDE,
    ) -> None:
        super().__init__()
        shape = (in_chans, image_size, image_size)
        whole = _built(network, num_classes, in_chans)
        anatomy = Anatomy(whole, shape)
        stages = [_as_map(stage) for stage in anatomy.stages()]
        places = _places(anatomy, exits, stages)
        if only is not None and not 1 <= only <= len(places):
            raise ValueError(f"only must be in 1 … {len(places)}, got {only}")
        self.only, self._places = only, places
        sizes = _sizes(whole, [*places, stages[-1]], shape)
        width, classes = _width(anatomy), cast(Tensor, anatomy.returned).shape[1]
        self.exits = nn.ModuleDict()
        for number, at in enumerate(places, start=1):
            if only in (None, number):
                factor = max(1, sizes[at][2] // sizes[stages[-1]][2])
                with seeded(run_seed(), "initialisation", "exit", number):
                    self.exits[str(number)] = Exit(sizes[at][1], width, factor, classes)
        self._describe(anatomy, whole, stages)
        if only is not None:
            for name in later(anatomy.runs, place(places[only - 1]).module):
                whole.set_submodule(name, Skipped())
        self.network = whole
        if only is not None:
            self._check(shape)

    def _describe(self, anatomy: Anatomy, whole: nn.Module, stages: Sequence[str]) -> None:
        """Say where stages, stem and classifier are, as `Anatomy` asks."""
        preacts = {info["module"]: info.get("preact") for info in getattr(whole, "feature_info", [])}
        self.feature_info: list[dict[str, Any]] = []
        order = [run.name for run in anatomy.runs]
        last = len(order) if self.only is None else order.index(place(self._places[self.only - 1]).module)
        for stage in stages:
            if order.index(place(stage).module) <= last:
                self.feature_info.append({"module": f"{NETWORK}{stage}"})
        self._classifier = f"{NETWORK}{anatomy.classifier()}"
        if self.only is not None:
            self.feature_info.append({"module": f"{EXITS}{self.only}.bottleneck"})
            self._classifier = f"{EXITS}{self.only}.fc"
