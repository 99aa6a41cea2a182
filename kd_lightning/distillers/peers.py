"""Peers: networks that learn together, held as one student whose answer is their ensemble."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kd_lightning.batch import Batch
from kd_lightning.distillers.building import built
from kd_lightning.distillers.collaboration import ENSEMBLE, Learner
from kd_lightning.distillers.criteria import DEFAULT, Term
from kd_lightning.models import NetworkLike, Outputs, TapPlan, Views
from kd_lightning.models.anatomy import Several
from kd_lightning.models.branched import HasBranches
from kd_lightning.models.exits import HasExits
from kd_lightning.models.tap_plan import plan as planned
from kd_lightning.models.taps import tapped
from kd_lightning.seeds import hashed, run_seed


@dataclass
class Peer:
    """One of those who learn together.

    Args:
        network: A recipe (in Python also a module). Equal recipes start from different weights, by the peer's name.
        view: The view of the batch that it sees wherever a term says ``default``.
        criteria: Its own terms; None for those that all share.
        branch_criteria: The terms of its branches; None for those of the peer itself.
    """

    network: NetworkLike
    view: str = "default"
    criteria: dict[str, Term] | None = None
    branch_criteria: dict[str, Term] | None = None


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

    def ensembles(self) -> dict[str, list[str]]:
        """Name of the ensemble, as ``net_ensemble``, of each peer with exits -> the peer and its exits."""
        return {
            f"{name}_{ENSEMBLE}": [each.name for each in self.learners() if each.peer == name]
            for name, network in self.networks.items()
            if isinstance(network, HasExits) and network.branch_taps()
        }

    def answers(self, image: Tensor) -> dict[str, Tensor]:
        """Logits ``[N, C]`` of every learner, and of the ensembles of exits, for images ``[N, C, H, W]``."""
        found = {}
        for name, network in self.networks.items():
            branches = list(network.branch_taps()) if isinstance(network, HasBranches) else []
            with tapped(network, branches) as taps:
                found[name] = network(image)
            found |= {f"{name}_{n}": taps[tap] for n, tap in enumerate(branches, start=1)}
        means = {name: torch.stack([found[each] for each in who]).mean(dim=0) for name, who in self.ensembles().items()}
        return found | means

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` to the mean of the peers' logits ``[N, C]``."""
        return torch.stack([network(x) for network in self.networks.values()]).mean(dim=0)


def plans_of(network: nn.Module, asked: Mapping[Learner, set[str]], image_shape: tuple[int, ...]) -> dict[str, TapPlan]:
    """Where the taps of a peer and its branches are, by the learner's name; the peer's own plan has all of them.

    Args:
        network: Of the peer.
        asked: The peer and its branches -> the taps that each is asked for. Those of an exit are its own where it has
            such (see `HasExits`), else the network's.
        image_shape: (C, H, W) of its images.

    Raises:
        ValueError: if a tap stands for nothing in this network.
    """
    own = {
        learner.name: network.exit_taps(learner.branch)
        if learner.branch is not None and isinstance(network, HasExits)
        else {}
        for learner in asked
    }
    wanted = {own[learner.name].get(tap, tap) for learner, taps in asked.items() for tap in taps}
    wanted |= {learner.branch for learner in asked if learner.branch is not None}
    made = planned(network, sorted(wanted), image_shape)
    found = {}
    for name, symbols in own.items():
        there = {symbol: tap for symbol, tap in symbols.items() if tap in made.names}
        names: dict[str, Several] = {**made.names, **there}
        found[name] = TapPlan(names, {**made.shapes, **{symbol: made.shapes[tap] for symbol, tap in there.items()}})
    return found


def heard_from(network: nn.Module, plan: TapPlan, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits ``[N, C]`` of one network for images ``[N, C, H, W]``, and its taps by the names of submodules."""
    with tapped(network, plan.submodules()) as taps:
        logits: Tensor = network(image)
    return logits, taps


def answer(network: nn.Module, plan: TapPlan, image: Tensor) -> Outputs:
    """Logits and taps of one network for images ``[N, C, H, W]``."""
    logits, taps = heard_from(network, plan, image)
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
        plans: Of the learners' taps.
        learners: Who answers.
        views: As terms state them.
        shown: What a peer sees; see `shown_to`.
    """
    heard: dict[tuple[str, str], tuple[Tensor, dict[str, Tensor]]] = {}
    said: dict[tuple[str, str], Outputs] = {}
    found: dict[str, dict[str, Outputs]] = {}
    for view in sorted(views):
        found[view] = {}
        for learner in learners:
            name, image = shown(learner.peer, view)
            key = learner.peer, name
            if key not in heard:
                heard[key] = heard_from(peers.networks[learner.peer], plans[learner.peer], image)
            if (learner.name, name) not in said:
                logits, taps = heard[key]
                own = logits if learner.branch is None else taps[learner.branch]
                said[learner.name, name] = Outputs(own, plans[learner.name].picked(taps))
            found[view][learner.name] = said[learner.name, name]
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
