"""Peers: networks that learn together, held as one student whose answer is their ensemble."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kd_lightning.batch import Batch
from kd_lightning.distillers.building import built
from kd_lightning.distillers.collaboration import Learner
from kd_lightning.distillers.criteria import DEFAULT, Term
from kd_lightning.models import NetworkLike, Outputs, TapPlan, Views
from kd_lightning.models.branched import HasBranches
from kd_lightning.models.taps import tapped
from kd_lightning.seeds import hashed, run_seed


@dataclass
class Peer:
    """One of those who learn together.

    Args:
        network: A recipe (in Python also a module). Equal recipes start from different weights, by the peer's name.
        view: The view of the batch that it sees wherever a term says ``default``.
        criteria: Its own terms; None for those that all share.
    """

    network: NetworkLike
    view: str = "default"
    criteria: dict[str, Term] | None = None


def build_peer(name: str, peer: Peer, num_classes: int, views: Views) -> nn.Module:
    """The network of a peer, whose start is a function of the seed and the peer's name.

    Raises:
        ValueError: if it is normalised otherwise than the data.
    """
    return built(f"peers.{name}", peer.network, num_classes, views, int(hashed(run_seed(), "peer", name)))


class Peers(nn.Module):
    """Networks by name; the answer is the mean of their logits.

    Args:
        networks: Name -> network.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)

    def learners(self) -> list[Learner]:
        """Every peer, followed by its branches, which are called ``<peer>_1``, ``<peer>_2``, ..."""
        found = []
        for name, network in self.networks.items():
            found.append(Learner(name, name))
            if isinstance(network, HasBranches):
                found += [Learner(f"{name}_{n}", name, tap) for n, tap in enumerate(network.branch_taps(), start=1)]
        return found

    def answers(self, image: Tensor) -> dict[str, Tensor]:
        """Logits ``[N, C]`` of every learner for images ``[N, C, H, W]``."""
        found = {}
        for name, network in self.networks.items():
            branches = list(network.branch_taps()) if isinstance(network, HasBranches) else []
            with tapped(network, branches) as taps:
                found[name] = network(image)
            found |= {f"{name}_{n}": taps[tap] for n, tap in enumerate(branches, start=1)}
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` to the mean of the peers' logits ``[N, C]``."""
        return torch.stack([network(x) for network in self.networks.values()]).mean(dim=0)


def answer(network: nn.Module, plan: TapPlan, image: Tensor) -> Outputs:
    """Logits and taps of one network for images ``[N, C, H, W]``."""
    with tapped(network, plan.submodules()) as taps:
        logits = network(image)
    return Outputs(logits, plan.picked(taps))


def shown_to(
    peers: Mapping[str, Peer], batch: Batch, memory_format: torch.memory_format
) -> Callable[[str, str], tuple[str, Tensor]]:
    """From a peer and a view as terms state it to the view's name in a batch, and its images ``[N, C, H, W]``.

    Where a term says ``default``, each peer sees its own view. Asked for a view that the batch lacks, it raises a
    ValueError.
    """

    def shown(peer: str, view: str) -> tuple[str, Tensor]:
        name = peers[peer].view if view == DEFAULT else view
        if name not in batch.images:
            raise ValueError(f"peer {peer} looks at the view {name!r}, the batch has {sorted(batch.images)}")
        return name, batch.images[name].to(memory_format=memory_format)

    return shown


def answers_of(
    peers: Peers,
    plans: Mapping[str, TapPlan],
    learners: Sequence[Learner],
    views: Iterable[str],
    shown: Callable[[str, str], tuple[str, Tensor]],
) -> dict[str, dict[str, Outputs]]:
    """View -> learner -> its answer; a peer answers each image once, also where two views are one to it.

    Args:
        peers: The networks.
        plans: Of the peers' taps.
        learners: Who answers.
        views: As terms state them.
        shown: What a peer sees; see `shown_to`.
    """
    heard: dict[tuple[str, str], Outputs] = {}
    found: dict[str, dict[str, Outputs]] = {}
    for view in sorted(views):
        found[view] = {}
        for learner in learners:
            name, image = shown(learner.peer, view)
            key = learner.peer, name
            if key not in heard:
                heard[key] = answer(peers.networks[learner.peer], plans[learner.peer], image)
            outputs = heard[key]
            if learner.branch is not None:
                outputs = Outputs(cast(Tensor, outputs.taps[learner.branch]), outputs.taps)
            found[view][learner.name] = outputs
    return found


def untrained(head: nn.Module) -> Callable[[Tensor], Tensor]:
    """A module as a function through which gradients pass to the input only."""

    def answered(x: Tensor) -> Tensor:
        given = {name: value.detach() for name, value in head.named_parameters()}
        out: Tensor = functional_call(head, given, (x,))
        return out

    return answered


def top1_of(figures: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, float]:
    """The last val/top1 of those who have one."""
    return {name: float(figures[f"val/{name}_top1"]) for name in names if f"val/{name}_top1" in figures}
