"""Codistillation: groups of processes train a peer each, and learn from what the others knew a while ago."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kd_lightning.distillers.collaboration import Collaboration, Learner, decoupled, two_at_least
from kd_lightning.distillers.peers import answer
from kd_lightning.models import Outputs, TapPlan
from kd_lightning.models.taps import LOGITS
from kd_lightning.ranks import world_size

COPIES = "copies"


def padded(rows: Tensor, length: int) -> Tensor:
    """Rows ``[N, ...]`` followed by zeros, ``[length, ...]``."""
    return torch.cat([rows, rows.new_zeros(length - len(rows), *rows.shape[1:])])


class Codistillation(Collaboration):
    """Each peer learns from the others as they were at the last exchange, or as they answer in every n-th step.

    With as many processes as peers, or a multiple, each group of processes (neighbours in rank) trains one peer on its
    share of the batches, and gradients are averaged within the group only: take the strategy `GroupedDDP`. In a single
    process, that process trains them all. The teacher's terms begin with the first step; a `Window` on their weight
    lets the peers learn alone first.

    ``weights``: every n steps, each process gets a copy of every peer; the copies answer, in eval mode, on the very
    images that the peer sees. ``predictions``: in every n-th step the processes answer each other's images; there are
    no teacher's terms in the steps between. Where several processes make a group, its members share that work.

    Source: Anil et al., "Large scale distributed neural network training through online distillation", ICLR 2018.

    Args:
        every: n, in optimizer steps, >= 1.
        exchange: ``weights`` or ``predictions``.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, every: int = 50, exchange: Literal["weights", "predictions"] = "weights") -> None:
        if every < 1:
            raise ValueError(f"every must be >= 1, got {every}")
        if exchange not in ("weights", "predictions"):
            raise ValueError(f"exchange must be weights or predictions, got {exchange!r}")
        self.every, self.exchange = every, exchange
        self.world = 1
        self._owned: dict[str, nn.Module] = {}
        self._networks: dict[str, nn.Module] = {}
        self._plans: Mapping[str, TapPlan] = {}
        self._copies: dict[str, nn.Module] = {}
        self._group: dist.ProcessGroup | None = None
        self._step = 0

    def teachers_of(self, learner: Learner, learners: Sequence[Learner]) -> list[str]:
        """The other peers; nobody teaches a branch."""
        names = two_at_least(learners, "Codistillation")
        return [] if learner.branch is not None else [name for name in names if name != learner.name]

    def teacher_plan(self, teacher: str, plans: Mapping[str, TapPlan]) -> TapPlan:
        """Copies have taps; predictions are logits only."""
        plan = plans[teacher]
        return plan if self.exchange == "weights" else TapPlan({}, {LOGITS: plan.shapes[LOGITS]})

    # Who trains what

    def begin(self, owned: Mapping[str, nn.Module], plans: Mapping[str, TapPlan]) -> None:
        """Take the peers, and find out which of them this process trains.

        Raises:
            ValueError: if the processes cannot be divided among the peers.
        """
        self._owned, self._plans = dict(owned), plans
        self._networks = {name: part.get_submodule("network") for name, part in owned.items()}
        self.world = world_size()
        if self.world == 1:
            return
        if self.world % len(owned):
            raise ValueError(
                f"Codistillation of {len(owned)} peers needs one process, or a multiple of {len(owned)}, "
                f"got {self.world}"
            )
        groups = [dist.new_group(self._ranks(index)) for index in range(len(owned))]  # every process makes every group
        self._group = cast(dist.ProcessGroup, groups[dist.get_rank() // self._size])

    def require(self, strategy: object) -> None:
        """Let the trainer's strategy pass.

        Raises:
            ValueError: if there are several processes, and they would average the gradients of all peers.
        """
        if self.world > 1 and not isinstance(strategy, GroupedDDP):
            raise ValueError(
                f"Codistillation in {self.world} processes needs trainer.strategy: {{class_path: "
                f"kd_lightning.distillers.GroupedDDP}}, got {type(strategy).__name__}"
            )

    @property
    def _size(self) -> int:
        return self.world // len(self._owned)

    def _ranks(self, index: int) -> list[int]:
        return list(range(index * self._size, (index + 1) * self._size))

    def trains(self, peer: str) -> bool:
        """Whether this process trains a peer."""
        return self.world == 1 or list(self._owned).index(peer) == dist.get_rank() // self._size

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The processes that train the same peer as this one; None where there is one process."""
        return self._group

    # The exchange

    def unite(self) -> None:
        """Bring every peer, as it is in its group's first process, to every process."""
        if self.world == 1:
            return
        for index, part in enumerate(self._owned.values()):
            for value in part.state_dict().values():
                if isinstance(value, Tensor):
                    dist.broadcast(value, src=index * self._size)

    def united(self, optimizer: dict[str, Any]) -> dict[str, Any]:
        """An optimizer's state with the part of every peer as it is in its group's first process."""
        if self.world == 1:
            return optimizer
        mine = {i for group in optimizer["param_groups"] if self.trains(group["peer"]) for i in group["params"]}
        own = {index: _on_cpu(state) for index, state in optimizer["state"].items() if index in mine}
        parts: list[dict[int, Any]] = [{} for _ in range(self.world)]
        dist.all_gather_object(parts, own if dist.get_rank() % self._size == 0 else {})
        return {**optimizer, "state": dict(sorted((i, state) for part in parts for i, state in part.items()))}

    def advance(self, step: int) -> None:
        """Refresh the copies before every n-th step; so what is exchanged does not depend on when a run was stopped."""
        self._step = step
        if self.exchange == "weights" and step % self.every == 0:
            self.unite()
            self._refresh({name: network.state_dict() for name, network in self._networks.items()})

    def _refresh(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        if not self._copies:
            self._copies = {
                name: copy.deepcopy(network).requires_grad_(False).eval() for name, network in self._networks.items()
            }
        for name, network in self._copies.items():
            # Assigned, so that a copy has the precision of what it is taken from, also before it was ever asked.
            network.load_state_dict({key: value.clone() for key, value in states[name].items()}, assign=True)

    def teach(self, answers: Mapping[str, Outputs], target: Tensor, images: Mapping[str, Tensor]) -> dict[str, Outputs]:
        """What the other peers' copies say; or what the others say now, in every n-th step."""
        here = [name for name in self._networks if self.trains(name)]
        wanted = [name for name in self._networks if here != [name]]
        if self.exchange == "weights":
            with torch.no_grad():
                return {
                    name: answer(self._copies[name].to(images[name].device), self._plans[name], images[name])
                    for name in wanted
                }
        if self._step % self.every:
            return {}
        if self.world == 1:
            return {name: decoupled(answers[name]) for name in wanted}
        said = self._asked_around(images, answers[here[0]].logits)
        return {name: Outputs(said[name], {}) for name in wanted}

    @torch.no_grad()
    def _asked_around(self, images: Mapping[str, Tensor], like: Tensor) -> dict[str, Tensor]:
        """Logits ``[N, C]`` of every peer on this process's images; the members of its group share who asks."""
        rank, names = dist.get_rank(), list(self._networks)
        own = names[rank // self._size]
        counts = torch.zeros(self.world, dtype=torch.int64, device=like.device)
        counts[rank] = len(like)
        dist.all_reduce(counts)
        longest = int(counts.max())
        replies = torch.zeros(len(names), self.world, longest, like.shape[1], device=like.device)
        network = self._networks[own]
        training = network.training
        network.eval()
        for name in names:
            mine = padded(images[name].contiguous(), longest)
            shown = [torch.empty_like(mine) for _ in range(self.world)]
            dist.all_gather(shown, mine)
            if name != own:
                continue
            for asking in range(rank % self._size, self.world, self._size):
                if asking != rank:
                    said = network(shown[asking][: int(counts[asking])])
                    replies[names.index(own), asking, : len(said)] = said.float()
        network.train(training)
        dist.all_reduce(replies)
        return {name: replies[index, rank, : len(like)] for index, name in enumerate(names)}

    # Checkpoints

    def state(self) -> dict[str, Any] | None:
        """The copies."""
        return (
            {COPIES: {name: network.state_dict() for name, network in self._copies.items()}} if self._copies else None
        )

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Take up the copies of a checkpoint."""
        if state is not None:
            self._refresh(state[COPIES])


def _on_cpu(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.cpu() if isinstance(value, Tensor) else value for key, value in state.items()}


@runtime_checkable
class TrainsInGroups(Protocol):
    """A module of which every group of processes trains a part."""

    collaboration: Collaboration

    def trained_elsewhere(self) -> list[str]:
        """Names of the parameters and buffers that other groups train."""


class GroupedDDP(DDPStrategy):
    """DDP within groups of processes: gradients and buffers are shared by those that train the same peer."""

    def configure_ddp(self) -> None:
        """Wrap the module for this process's group, without what other groups train.

        Raises:
            ValueError: if the module does not train in groups.
        """
        module = self.lightning_module
        if not isinstance(module, TrainsInGroups):
            raise ValueError(f"the strategy GroupedDDP is for an OnlineDistiller, got {type(module).__name__}")
        if self.world_size > 1:
            if (group := module.collaboration.group) is None:
                kind = type(module.collaboration).__name__
                raise ValueError(f"the strategy GroupedDDP is for Codistillation; {kind} takes ddp")
            self._ddp_kwargs["process_group"] = group
            ignored = module.trained_elsewhere()
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(cast(nn.Module, self.model), ignored)
        super().configure_ddp()
