"""A part of a run: the network that is exported, and the recipe that its weights fill."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.models import load_model_config_from_hf
from torch import Tensor, nn

from kd_lightning.distillers.generation_answers import ensemble
from kd_lightning.distillers.peers import Peers
from kd_lightning.models import Network
from kd_lightning.models.network import LOCAL, TIMM_SOURCES
from kd_lightning.models.two_heads import Inference, combined, two_heads

OF_DATA = ("num_classes", "in_chans")  # what a network's constructor is told by the data


class Part(NamedTuple):
    """What is exported.

    Attributes:
        name: Of the part; empty for the student.
        network: Answers images ``[N, C, H, W]`` with logits; see `at_ease`.
        recipe: What the network's state dict fills; None where the configuration states none.
        combined: Why no state dict says what it answers; empty where one does.
    """

    name: str
    network: nn.Module
    recipe: Network | None
    combined: str = ""


class Heads(nn.Module):
    """Both heads of a network combined, or one of them.

    Args:
        network: Prepared by `prepare_heads`.
        inference: See `kd_lightning.models.two_heads.combined`.
    """

    def __init__(self, network: nn.Module, inference: Inference) -> None:
        super().__init__()
        self.network: nn.Module = network
        self.inference: Inference = inference

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` to logits ``[N, K]``."""
        return combined(*two_heads(self.network, x), self.inference)


class Ensemble(nn.Module):
    """The logarithm of the mean of several networks' class probabilities.

    Args:
        networks: At least two.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` to logits ``[N, K]``."""
        return ensemble([network(x) for network in self.networks])


class AnswerOf(nn.Module):
    """One of the answers of peers.

    Args:
        peers: The networks.
        name: Of the answer; see `Peers.answers`.
    """

    def __init__(self, peers: Peers, name: str) -> None:
        super().__init__()
        self.peers, self.name = peers, name

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` to logits ``[N, K]``."""
        return self.peers.answers(x)[self.name]


def at_ease(network: nn.Module) -> nn.Module:
    """A copy on the CPU, in eval mode, float32 and contiguous memory format, without gradients."""
    made = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
    return made.to(memory_format=torch.contiguous_format)


def architecture(name: str) -> tuple[str, dict[str, Any]]:
    """The name by which everybody's timm knows a network, and the arguments that are stored where a name points to.

    Args:
        name: Of a network; where it is a repository of the hub or a local folder, the ``config.json`` there is read.
    """
    if not name.startswith(TIMM_SOURCES):
        return name, {}
    where = name.partition(":")[2]
    if name.startswith(LOCAL):
        config = json.loads((Path(where) / "config.json").read_text())
        found, stored = str(config["architecture"]), config.get("model_args") or {}
    else:
        _, found, stored = load_model_config_from_hf(where)
    return found, {key: value for key, value in stored.items() if key not in OF_DATA}


def bare(fields: Mapping[str, Any]) -> Network:
    """A recipe from its fields in a configuration, without the weights that a training started from.

    Recipes in its arguments lose theirs too, and with them the paths of files.
    """
    name, stored = architecture(fields["name"])
    return Network(name, stored | {key: _bared(value) for key, value in (fields.get("kwargs") or {}).items()})


def _bared(value: Any) -> Any:
    if not isinstance(value, Mapping) or "name" not in value:
        return value
    inner = bare(value)
    return {"name": inner.name, "kwargs": inner.kwargs}


def recipes(init_args: Mapping[str, Any]) -> dict[str, Network]:
    """Name -> recipe of the networks that a run trains, from its configuration: ``student``, or each peer's.

    Args:
        init_args: Of the configuration's ``model``.
    """
    if "peers" in init_args:
        return {name: bare(peer["network"]) for name, peer in init_args["peers"].items()}
    return {"student": bare(init_args["student"])} if "student" in init_args else {}
