"""One trunk with several branches and a gate: peers that share their first layers."""

import copy
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from kd_lightning.models.network import InnerRecipe, build_inner
from kd_lightning.models.peer_weights import BRANCHES, plain_weights
from kd_lightning.models.taps import at_rest
from kd_lightning.models.token_maps import to_map
from kd_lightning.models.trace import traced
from kd_lightning.seeds import MASK, hashed_int, run_seed, seeded

SIDE = 32  # pixels of the noise by which a cut is tried, where the network does not say its own


@runtime_checkable
class HasBranches(Protocol):
    """A network whose logits come from several branches, each the output of a submodule."""

    def branch_taps(self) -> Sequence[str]:
        """Names of the submodules that give the branches' logits."""


def replaced(network: nn.Module, names: Sequence[str]) -> nn.Module:
    """A copy of a network in which submodules are identities."""
    made = copy.deepcopy(network)
    for name in names:
        made.set_submodule(name, nn.Identity())
    return made


def cut(network: nn.Module, at: str, image_shape: tuple[int, ...]) -> tuple[list[str], list[str]]:
    """Names of the largest submodules that run before a submodule, and of it and those that run after.

    Args:
        network: Any network.
        at: Name of a submodule.
        image_shape: (C, H, W) of its images.

    Raises:
        ValueError: if there is no such submodule, it does not run once, or nothing runs before it.
    """
    runs, _ = traced(network, image_shape)
    order = [run.name for run in runs]
    if at not in order:
        raise ValueError(
            f"at must be a submodule of {type(network).__name__} that runs once, got {at!r}; "
            f"it has {', '.join(name for name in order if '.' not in name or name.startswith(at.partition('.')[0]))}"
        )

    def within(name: str, other: str) -> bool:
        return name.startswith(f"{other}.")

    inside = [index for index, name in enumerate(order) if name == at or within(name, at)]
    sides: tuple[list[str], list[str]] = ([], [])
    for index, name in enumerate(order):
        if not within(at, name) and not within(name, at):
            sides[index >= min(inside)].append(name)
    before, after = ([name for name in side if not any(within(name, other) for other in side)] for side in sides)
    if not before:
        raise ValueError(f"at: nothing of {type(network).__name__} runs before {at!r}, so nothing would be shared")
    return before, after


def gate(channels: int, branches: int) -> nn.Sequential:
    """From the trunk's mean ``[N, C]`` to the branches' weights ``[N, B]``, which sum to 1.

    Source: Lan, Zhu, Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018, section 3.1.
    """
    return nn.Sequential(nn.Linear(channels, branches), nn.BatchNorm1d(branches), nn.ReLU(), nn.Softmax(dim=1))


class BranchedNetwork(nn.Module):
    """Several copies of a network's last part on one first part, and a gate that mixes their logits.

    Each branch together with the trunk is a plain network of the recipe, with its own initialisation. The answer is the
    gated ensemble, sum_b g_b(x) z_b(x), or one branch's where ``only`` names it.

    Source: Lan, Zhu, Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018.

    Args:
        network: Recipe of the network, or its fields; in Python also a module, whose branches start equal.
        at: Name of the submodule where the branches start, for instance ``stages.2``.
        branches: How many, >= 2.
        only: The branch that answers alone, counted from 1; None for all and the gate.
        num_classes: Number of classes, which comes from the data.
        in_chans: Channels of the images.
        image_size: Side of the images by which the cut is tried, in pixels.

    Raises:
        ValueError: if an argument is out of range, or the network is no chain of submodules around ``at``: one with a
            class token, or with a connection around ``at``, cannot be cut there.
    """

    def __init__(
        self,
        network: InnerRecipe,
        at: str,
        branches: int = 3,
        only: int | None = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        image_size: int = SIDE,
    ) -> None:
        super().__init__()
        if branches < 2:
            raise ValueError(f"branches must be >= 2, got {branches}")
        if only is not None and not 1 <= only <= branches:
            raise ValueError(f"only must be in 1 … {branches}, got {only}")
        self.only, own = only, torch.initial_seed() & MASK
        shape = (in_chans, image_size, image_size)
        whole = _built(network, branches, num_classes, in_chans)
        before, after = cut(whole[0], at, shape)
        self.trunk = replaced(whole[0], after)
        self.branches = nn.ModuleList(replaced(each, before) for each in whole)
        noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        channels = self._checked(whole[0], noise, at)
        with seeded(own, "initialisation", "gate"):
            self.gate = gate(channels, branches)

    def _checked(self, network: nn.Module, noise: Tensor, at: str) -> int:
        """Channels of what the trunk gives, if trunk and branch together are the network."""
        noise = noise.to(next(network.parameters()))
        with at_rest(network), at_rest(self):
            try:
                shared = self.trunk(noise)
                same = torch.allclose(self.branches[0](shared), network(noise), rtol=1e-3, atol=1e-5)
            except (RuntimeError, ValueError, AssertionError, TypeError):  # what a foreign forward raises on odd shapes
                same = False
        if not same:
            raise ValueError(
                f"{type(network).__name__} cannot be cut at {at!r}: it is no chain of submodules there (a class token, "
                "a position embedding or a connection passes by); choose another submodule or network"
            )
        return self._pooled(shared).shape[1]

    def _pooled(self, shared: Tensor) -> Tensor:
        return shared if shared.ndim == 2 else to_map(shared, self.trunk).mean(dim=(2, 3))

    def branch_taps(self) -> list[str]:
        """Names of the submodules that give the branches' logits."""
        return [f"{BRANCHES}{index}" for index in range(len(self.branches))]

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, in_chans, H, W]`` to logits ``[N, num_classes]``: of the gated ensemble, or of one branch."""
        shared = self.trunk(x)
        if self.only is not None:
            alone: Tensor = self.branches[self.only - 1](shared)
            return alone
        logits = torch.stack([branch(shared) for branch in self.branches], dim=1)
        weights: Tensor = self.gate(self._pooled(shared))
        return (weights.unsqueeze(2) * logits).sum(dim=1)

    def plain_weights(self, branch: int) -> dict[str, Tensor]:
        """Trunk and one branch, counted from 1, as the state of a plain network of the recipe.

        Raises:
            ValueError: if there is no such branch.
        """
        return plain_weights(self.state_dict(), branch)


def _built(network: InnerRecipe, branches: int, num_classes: int, in_chans: int) -> list[nn.Module]:
    # Of who builds it, so that two peers of one recipe start apart; a student's first starts as the plain network does.
    own = torch.initial_seed() & MASK
    first = None if own == hashed_int(run_seed(), "initialisation", "student") else own
    seeds = [first, *(hashed_int(own, "branch", index) for index in range(1, branches))]
    return [build_inner(network, num_classes, in_chans, seed) for seed in seeds]
