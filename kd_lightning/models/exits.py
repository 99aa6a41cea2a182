"""One network with exits on the way, which answer from the first layers alone; the deepest answer teaches them."""

from collections.abc import Mapping, Sequence
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from kd_lightning.models.anatomy import STEMS, Anatomy, HasFeatureInfo, HasStemInfo, is_symbol
from kd_lightning.models.branched import HasBranches
from kd_lightning.models.network import InnerRecipe, build_inner
from kd_lightning.models.peer_weights import EXITS, NETWORK
from kd_lightning.models.stopped import stopped
from kd_lightning.models.tap_plan import several
from kd_lightning.models.taps import place, probe, tapped
from kd_lightning.models.token_maps import HasOutputFormat, HasPatches, prefix_tokens
from kd_lightning.seeds import MASK, seeded

SIDE = 32  # pixels of the images by which sizes are found, where the network does not say its own
SQUEEZE = 4  # channels of the deepest features over those inside a bottleneck, at least


@runtime_checkable
class HasExits(HasBranches, Protocol):
    """A network whose branches are exits of its own: each has an embedding and a last map, as the whole has."""

    def exit_taps(self, branch: str) -> Mapping[str, str]:
        """What symbols stand for in an exit, by the name of the submodule that gives its logits."""


def bottleneck(in_chs: int, out_chs: int, factor: int) -> nn.Sequential:
    """Three convolutions from a stage's map to the size and channels of the deepest, each with normalisation and ReLU.

    1x1 to a quarter of ``out_chs``, but not more than ``in_chs``; k x k with stride k, where k is ``factor``, or 3 x 3
    with stride 1 where that is 1; 1x1 to ``out_chs``.

    Args:
        in_chs: Channels of the stage.
        out_chs: Channels of the deepest features.
        factor: Height of the stage's map over that of the last, >= 1.
    """
    mid = max(1, min(in_chs, out_chs // SQUEEZE))
    middle = (3, 1, 1) if factor == 1 else (factor, factor, 0)
    layers: list[nn.Module] = []
    for first, last, shape in ((in_chs, mid, (1, 1, 0)), (mid, mid, middle), (mid, out_chs, (1, 1, 0))):
        layers += [nn.Conv2d(first, last, *shape, bias=False), nn.BatchNorm2d(last), nn.ReLU()]
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
        network: InnerRecipe,
        exits: Sequence[str] | None = None,
        only: int | None = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        image_size: int = SIDE,
    ) -> None:
        super().__init__()
        shape = (in_chans, image_size, image_size)
        seed = torch.initial_seed() & MASK  # of who builds it, so that two peers of one recipe start apart
        whole = build_inner(network, num_classes, in_chans, seed)
        anatomy = Anatomy(whole, shape)
        places, last = _places(anatomy, exits), _as_map(anatomy.stages()[-1])
        if only is not None and not 1 <= only <= len(places):
            raise ValueError(f"only must be in 1 … {len(places)}, got {only}")
        self.only, self._places = only, places
        sizes = _sizes(whole, [*places, last], shape)
        width, classes = _width(anatomy), cast(Tensor, anatomy.returned).shape[1]
        self.exits = nn.ModuleDict()
        for number, at in enumerate(places, start=1):
            if only in (None, number):
                factor = max(1, sizes[at][2] // sizes[last][2])
                with seeded(seed, "exit", number):
                    self.exits[str(number)] = Exit(sizes[at][1], width, factor, classes)
        self._describe(anatomy)
        self.network = whole if only is None else stopped(whole, anatomy.runs, places[only - 1], shape)

    def _describe(self, anatomy: Anatomy) -> None:
        """Say where stages, stem and classifier are, as `Anatomy` asks."""
        infos = _stage_infos(anatomy)
        self._classifier = f"{NETWORK}{anatomy.classifier()}"
        if self.only is not None:
            order = {run.name: index for index, run in enumerate(anatomy.runs)}
            end = order[place(self._places[self.only - 1]).module]
            infos = [info for info in infos if order[place(info["module"]).module] <= end]
            self._classifier = f"{EXITS}{self.only}.fc"
        self.feature_info = [{key: f"{NETWORK}{name}" for key, name in info.items()} for info in infos]
        if self.only is not None:
            self.feature_info.append({"module": f"{EXITS}{self.only}.bottleneck"})
        self.stem_info = {"module": f"{NETWORK}{_stem(anatomy)}"}

    @property
    def num_prefix_tokens(self) -> int:
        """How many class and distillation tokens precede the network's patches."""
        return prefix_tokens(self.network)

    @property
    def patch_embed(self) -> nn.Module | None:
        """The network's, where it has one: it knows the grid of the tokens."""
        return self.network.patch_embed if isinstance(self.network, HasPatches) else None

    @property
    def output_fmt(self) -> str:
        """Where the network's maps have their channels."""
        return str(self.network.output_fmt) if isinstance(self.network, HasOutputFormat) else "NCHW"

    def get_classifier(self) -> nn.Module:
        """The last layer of who answers: of the network, or of the exit that answers alone."""
        return self.get_submodule(self._classifier)

    def branch_taps(self) -> list[str]:
        """Names of the submodules that give the exits' logits; none where an exit answers alone."""
        return [f"{EXITS}{number}" for number in self.exits] if self.only is None else []

    def exit_taps(self, branch: str) -> dict[str, str]:
        """What symbols stand for in an exit, by the name of the submodule that gives its logits."""
        last = f"{branch}.bottleneck"
        return {"embedding": f"{branch}.fc:in", "last_map": last, "last_stage": last}

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, in_chans, H, W]`` to logits ``[N, num_classes]``: the deepest, or those of one exit."""
        if self.only is not None:
            at = self._places[self.only - 1]
            with tapped(self.network, [at]) as taps:
                self.network(x)
            alone: Tensor = self.exits[str(self.only)](taps[at])
            return alone
        with tapped(self.network, self._places) as taps:
            logits: Tensor = self.network(x)
        for number, at in enumerate(self._places, start=1):
            self.exits[str(number)](taps[at])  # heard by whoever taps it
        return logits


def _as_map(tap: str) -> str:
    return tap if "map" in place(tap).shapes else f"{tap}:map"


def _places(anatomy: Anatomy, exits: Sequence[str] | None) -> list[str]:
    """Taps of the maps after which an exit stands."""
    kind = type(anatomy.network).__name__
    if exits is None:
        places = anatomy.stages()[:-1]
        if not places:
            raise ValueError(f"exits: {kind} has a single stage, so none to leave it after: name its submodules")
    else:
        named = [anatomy.named(tap) if is_symbol(tap) else tap for tap in exits]
        places = [name for group in named for name in several(group)]
    order = {run.name: index for index, run in enumerate(anatomy.runs)}
    when = [order.get(place(name).module, -1) for name in places]
    if not places or min(when) < 0 or when != sorted(set(when)):
        raise ValueError(
            f"exits must be submodules of {kind} that run once, from shallow to deep, or null for its stages, got "
            f"{exits}; its stages are {anatomy.stages()}"
        )
    return [_as_map(name) for name in places]


def _sizes(network: nn.Module, places: Sequence[str], shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    try:
        return probe(network, places, shape)
    except ValueError as error:
        raise ValueError(f"exits: {type(network).__name__} cannot have them: {error}") from error


def _width(anatomy: Anatomy) -> int:
    """Length of the embedding."""
    name = anatomy.classifier()
    embedding = cast(Tensor, next(run.entered for run in anatomy.runs if run.name == name))
    return embedding.shape[1 if embedding.ndim == 4 else -1]


def _stage_infos(anatomy: Anatomy) -> list[dict[str, str]]:
    stages = anatomy.stages()
    if isinstance(anatomy.network, HasFeatureInfo) and isinstance(anatomy.network, HasStemInfo):
        preacts = {info["module"]: info["preact"] for info in anatomy.network.feature_info if "preact" in info}
        return [{"module": stage} | ({"preact": preacts[stage]} if stage in preacts else {}) for stage in stages]
    return [{"module": stage} for stage in stages]


def _stem(anatomy: Anatomy) -> str:
    try:
        return anatomy.stem()
    except ValueError:
        return STEMS[0]  # where none is known: who asks for it is told that there is no such submodule
