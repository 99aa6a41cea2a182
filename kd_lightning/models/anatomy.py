"""The anatomy of a network: its stages, stem, embedding, last map and attention, under names that every network has.

``stages``: the maps at the end of each stage, from shallow to deep. ``stage:2``: the second of them. ``last_stage``:
the last. ``stem+stages``: the stem's map too. Followed by ``:preact``, a stage's value before its last activation.
``embedding``: the classifier's input, a vector. ``last_map``: the map whose mean is the embedding. ``attention``: the
last block's attention probabilities. ``logits``: the network's output.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from kd_lightning.models.taps import LOGITS, CanFuse, place
from kd_lightning.models.token_maps import to_map
from kd_lightning.models.trace import Run, traced

PREACT = ":preact"
STAGE = re.compile(r"stage:(\d+)")
PLURAL = frozenset({"stages", "stem+stages"})
SINGULAR = frozenset({"last_stage", "embedding", "last_map", "attention", LOGITS})
STEMS = ("stem", "patch_embed", "act1", "conv1")
BLOCKS = 4  # of a transformer's equal blocks, the ends of so many equal parts are its stages
Several = str | list[str]


@runtime_checkable
class HasFeatureInfo(Protocol):
    """A network that says where its stages end, as timm's do."""

    feature_info: Sequence[Mapping[str, Any]]


@runtime_checkable
class HasStemInfo(Protocol):
    """A network whose ``feature_info`` is of its stages alone, and that says where its stem ends."""

    stem_info: Mapping[str, Any]


@runtime_checkable
class HasClassifier(Protocol):
    """A network that gives its classifier, as timm's do; a pair where it has two heads."""

    def get_classifier(self) -> nn.Module | tuple[nn.Module, ...]:
        """The last layer; of two heads, the first is taken."""


def is_symbol(tap: str) -> bool:
    """Whether a tap is one of the names that every network understands."""
    name = tap.removesuffix(PREACT)
    return name in PLURAL | SINGULAR or STAGE.fullmatch(name) is not None


class Anatomy:
    """What the symbols stand for in one network, found by one forward.

    Args:
        network: Any classifier.
        image_shape: (C, H, W) of its images.
    """

    def __init__(self, network: nn.Module, image_shape: tuple[int, ...]) -> None:
        self.network = network
        self.runs, self.returned = traced(network, image_shape)

    def named(self, symbol: str) -> Several:
        """Names of submodules, one or several as the symbol is singular or plural.

        Raises:
            ValueError: if the network has no such thing.
        """
        name = symbol.removesuffix(PREACT)
        if name in ("embedding", "last_map", "attention"):
            return {"embedding": self.embedding, "last_map": self.last_map, "attention": self.attention}[name]()
        stages = self.stages()
        if name == "last_stage":
            stages = stages[-1:]
        elif match := STAGE.fullmatch(name):
            number = int(match[1])
            if not 1 <= number <= len(stages):
                raise ValueError(f"tap {symbol!r}: {self._type} has {len(stages)} stages, counted from 1")
            stages = stages[number - 1 : number]
        if symbol.endswith(PREACT):
            stages = [self.before_activation(stage) for stage in stages]
        if name == "stem+stages":
            stages = [self.stem(), *stages]
        return stages if name in PLURAL else stages[0]

    @property
    def _type(self) -> str:
        return type(self.network).__name__

    def stages(self) -> list[str]:
        """The ends of the stages: as the network says, or where the size of the maps changes for the last time."""
        network = self.network
        if not isinstance(network, HasFeatureInfo):
            return self._by_size()[-BLOCKS:]
        infos = list(network.feature_info)
        if isinstance(network, HasStemInfo):
            return [info["module"] for info in infos]
        if len(infos) > BLOCKS and len({info["reduction"] for info in infos}) == 1:
            infos = [infos[len(infos) * (part + 1) // BLOCKS - 1] for part in range(BLOCKS)]
        elif self._begins_with_stem(infos):
            infos = infos[1:]
        return [f"{info['module']}:map" for info in infos]

    @staticmethod
    def _begins_with_stem(infos: Sequence[Mapping[str, Any]]) -> bool:
        return len(infos) > 1 and infos[0]["reduction"] < min(4, infos[1]["reduction"])

    def _by_size(self) -> list[str]:
        """For each size of maps larger than 1x1, from large to small, the submodule that finishes last."""
        last: dict[tuple[int, ...], str] = {}
        for run in self.runs:
            if run.left is not None and run.left.ndim == 4 and min(run.left.shape[2:]) > 1:
                last[tuple(run.left.shape[2:])] = run.name
        if not last:
            raise ValueError(f"{self._type} has no maps [N, C, H, W], so no stages: name its submodules as taps")
        return [last[size] for size in sorted(last, reverse=True)]

    def stem(self) -> str:
        """Where the stem ends.

        Raises:
            ValueError: if that is not known.
        """
        network, own = self.network, {run.name for run in self.runs}
        if isinstance(network, HasStemInfo):
            return str(network.stem_info["module"])
        if isinstance(network, HasFeatureInfo) and self._begins_with_stem(list(network.feature_info)):
            return f"{network.feature_info[0]['module']}:map"
        if found := next((name for name in STEMS if name in own), None):
            return f"{found}:map"
        raise ValueError(f"tap 'stem+stages': {self._type} has no stem that is known: name its submodules as taps")

    def before_activation(self, stage: str) -> str:
        """The tap in front of the activation that a stage ends in.

        Raises:
            ValueError: if it ends in none.
        """
        network = self.network
        if isinstance(network, HasFeatureInfo):
            for info in network.feature_info:
                if info["module"] == stage and "preact" in info:
                    return f"{info['preact']}:in"
        module, _, shaped = stage.partition(":")
        left = next(run.left for run in self.runs if run.name == module)
        for run in reversed(self.runs):
            if run.left is left and run.left is not None and _is_activation(run):
                return f"{run.name}:in" + (f":{shaped}" if shaped else "")
        raise ValueError(
            f"tap '{stage}{PREACT}': this stage of {self._type} does not end in an activation: name a submodule as tap"
        )

    def classifier(self) -> str:
        """The last layer, whose input is the embedding.

        Raises:
            ValueError: if it is not known.
        """
        network = self.network
        if isinstance(network, HasClassifier):
            found = network.get_classifier()
            head = found[0] if isinstance(found, tuple) else found
            names = [run.name for run in self.runs if run.module is head]
        else:
            names = [run.name for run in self.runs if run.left is self.returned and isinstance(run.module, nn.Linear)]
        if not names:
            raise ValueError(
                f"the classifier of {self._type} is not known: its output is not a linear layer's, and it has no "
                "get_classifier(); name a submodule as tap in place of embedding"
            )
        return names[-1]

    def embedding(self) -> str:
        """The classifier's input."""
        return f"{self.classifier()}:in"

    def last_map(self) -> str:
        """The last map whose mean over the positions is the embedding.

        Raises:
            ValueError: if there is none, as in a network with a class token.
        """
        name = self.classifier()
        embedding = next(run.entered for run in self.runs if run.name == name)
        for run in reversed(self.runs):
            if _is_map_of(run.left, embedding):
                return run.name
            if run.left is not None and _is_map_of(self._reshaped(run.left), embedding):
                return f"{run.name}:map"
        raise ValueError(
            f"tap 'last_map': {self._type} has no map whose mean is the classifier's input: name a submodule as tap"
        )

    def _reshaped(self, feature: Tensor) -> Tensor | None:
        try:
            return to_map(feature, self.network)
        except ValueError:
            return None

    def attention(self) -> str:
        """The attention of the last block.

        Raises:
            ValueError: if there is none.
        """
        names = [name for name, module in self.network.named_modules() if isinstance(module, CanFuse)]
        if not names:
            raise ValueError(f"tap 'attention': {self._type} has no attention of timm: name a submodule as tap")
        return f"{names[-1]}:probabilities"


def _is_activation(run: Run) -> bool:
    kind = type(run.module)
    return kind.__module__.startswith(("torch.nn.modules.activation", "timm.layers.activations"))


def _is_map_of(feature: Tensor | None, embedding: Tensor | None) -> bool:
    if feature is None or embedding is None or feature.ndim != 4 or feature.shape[2:].numel() == 1:
        return False
    mean = feature.mean(dim=(2, 3))
    return mean.shape == embedding.shape and torch.allclose(mean, embedding, rtol=1e-3, atol=1e-4)


def norm_before(network: nn.Module, tap: str) -> nn.BatchNorm2d:
    """The batch normalisation in front of a tap before an activation: the last in its block that is declared before.

    One of the block's own comes before one inside a part of the block, as a shortcut is.

    Args:
        network: Whose tap it is.
        tap: As ``stages.0.8.act2:in``.

    Raises:
        ValueError: if there is none with scale and shift.
    """
    block, _, own = place(tap).module.rpartition(".")
    owner = network.get_submodule(block) if block else network
    before = [child for _, child in takewhile(lambda named: named[0] != own, owner.named_children())]
    own_norms: list[nn.BatchNorm2d] = [owner] if isinstance(owner, nn.BatchNorm2d) else []
    own_norms += [child for child in before if isinstance(child, nn.BatchNorm2d)]
    inner: list[nn.BatchNorm2d] = [
        module for child in before for module in child.modules() if isinstance(module, nn.BatchNorm2d)
    ]
    found = (own_norms or inner)[-1:]
    if not found or not found[0].affine:
        raise ValueError(f"tap {tap!r}: there is no batch normalisation with scale and shift in front of it")
    return found[0]
