"""Who teaches whom among peers: each other, their ensemble, or the gated ensemble of branches."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.models import Outputs, TapPlan
from kd_lightning.models.taps import LOGITS
from kd_lightning.ranks import summed

ENSEMBLE = "ensemble"
TINY = 1e-30  # where nobody errs
RIDGE = 1e-4  # of the mean squared error, so that equal peers get equal weights


class Learner(NamedTuple):
    """Somebody with an answer of its own: a peer, or one branch of a peer.

    Attributes:
        name: As it is logged.
        peer: The peer that it is, or is a branch of.
        branch: The tap of the branch's logits; None for the peer itself.
    """

    name: str
    peer: str
    branch: str | None = None


def one_hot(target: Tensor, classes: int) -> Tensor:
    """Labels, int64 ``[N]``, or probabilities ``[N, C]``, as float32 probabilities ``[N, C]``."""
    return F.one_hot(target, classes).float() if target.ndim == 1 else target.float()


def min_logit(logits: Tensor, target: Tensor) -> Tensor:
    """For each class the smallest of the peers' logits after subtracting the target's logit, ``[N, C]``.

    Source: Guo et al., "Online Knowledge Distillation via Collaborative Learning", CVPR 2020, section 3.2
    (KDCL-MinLogit). Of a mixed target, the mean of the targets' logits is subtracted.

    Args:
        logits: Of K peers, ``[K, N, C]``.
        target: Labels, int64 ``[N]``, or probabilities ``[N, C]``.
    """
    right: Tensor = (logits * one_hot(target, logits.shape[2]).to(logits.dtype)).sum(dim=2, keepdim=True)
    relative: Tensor = logits - right
    return relative.amin(dim=0)


def error_products(logits: Tensor, target: Tensor) -> Tensor:
    """Sums over the batch of the products of the peers' errors p_k - y, float64 ``[K, K]``.

    Args:
        logits: Of K peers, ``[K, N, C]``.
        target: Labels, int64 ``[N]``, or probabilities ``[N, C]``.
    """
    errors = logits.double().softmax(dim=2) - one_hot(target, logits.shape[2]).double()
    errors = errors.flatten(1)
    return errors @ errors.mT


def least_squares_weights(products: Tensor) -> Tensor:
    """Weights w ``[K]`` that sum to 1 and make the error of sum_k w_k p_k least in the mean square.

    With C the products of the errors, w = C^-1 1 / (1' C^-1 1). Weights may be negative. A ridge of 1e-4 of the mean
    diagonal keeps C regular, so that equal peers get equal weights.

    Source: Guo et al., "Online Knowledge Distillation via Collaborative Learning", CVPR 2020, whose weights for the
    least generalisation error have this form; here C is that of the batch.

    Args:
        products: C, ``[K, K]``; see `error_products`.
    """
    count = len(products)
    ridge = RIDGE * products.diagonal().mean() + TINY
    eye = torch.eye(count, dtype=products.dtype, device=products.device)
    solved: Tensor = torch.linalg.solve(products + ridge * eye, products.new_ones(count))
    return solved / solved.sum()


def decoupled(outputs: Outputs) -> Outputs:
    """An answer through which no gradient flows."""
    taps = {
        name: [part.detach() for part in value] if isinstance(value, list) else value.detach()
        for name, value in outputs.taps.items()
    }
    return Outputs(outputs.logits.detach(), taps)


def whole(learners: Sequence[Learner]) -> list[str]:
    """Names of the peers, without branches."""
    return [learner.name for learner in learners if learner.branch is None]


class Together:
    """Peers that are all trained in every process; others override this."""

    def begin(self, owned: Mapping[str, nn.Module], plans: Mapping[str, TapPlan]) -> None:
        """Told once of the built peers: all that is trained of each (``network`` among it), and where its taps are."""

    def require(self, strategy: object) -> None:
        """Let the trainer's strategy pass, or say which one is needed."""

    def trains(self, peer: str) -> bool:
        """Whether this process trains a peer."""
        return True

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The processes that train the same peers as this one; None for all of them."""
        return None

    def advance(self, step: int) -> None:
        """Told before each batch how many optimizer steps were made."""

    def unite(self) -> None:
        """Bring every peer, as it is where it is trained, to every process."""

    def united(self, optimizer: dict[str, Any]) -> dict[str, Any]:
        """An optimizer's state with the part of every peer as it is where the peer is trained."""
        return optimizer

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint must keep for an exact resume; None for nothing."""
        return None

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Take up the state of a checkpoint."""


class Collaboration(Together, ABC):
    """Who teaches whom. No gradient flows into who teaches."""

    @abstractmethod
    def teachers_of(self, learner: Learner, learners: Sequence[Learner]) -> Sequence[str]:
        """Names of those who teach a learner; a term with a teacher is the mean over them.

        Raises:
            ValueError: if these learners cannot learn in this way.
        """

    def teacher_plan(self, teacher: str, plans: Mapping[str, TapPlan]) -> TapPlan:
        """Where a teacher's taps are.

        Args:
            teacher: As `teachers_of` names it.
            plans: Of the learners.
        """
        return plans[teacher]

    @abstractmethod
    def teach(self, answers: Mapping[str, Outputs], target: Tensor, images: Mapping[str, Tensor]) -> dict[str, Outputs]:
        """What the teachers say to a batch; nothing where nobody teaches in this step.

        Args:
            answers: Of the learners that are trained in this process.
            target: Labels, int64 ``[N]``, or probabilities ``[N, C]``.
            images: What each peer sees, ``[N, C, H, W]``.
        """


def two_at_least(learners: Sequence[Learner], what: str) -> list[str]:
    """Names of the peers, if there are two.

    Raises:
        ValueError: if there are not.
    """
    if len(names := whole(learners)) < 2:
        raise ValueError(f"{what} needs at least 2 peers, got {names}")
    return names


class DML(Collaboration):
    """Each peer learns from every other one.

    With terms ``ce`` and ``kd`` (`SoftTarget` at T = 1) this is CE + 1/(K - 1) sum_k KL(p_k || p_self).

    Source: Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", CVPR 2018, eq. 4 to 6 and 9. There the peers are
    updated in turn; here all of them answer before any is updated.
    """

    def teachers_of(self, learner: Learner, learners: Sequence[Learner]) -> list[str]:
        """The other peers; nobody teaches a branch."""
        names = two_at_least(learners, "DML")
        return [] if learner.branch is not None else [name for name in names if name != learner.name]

    def teach(self, answers: Mapping[str, Outputs], target: Tensor, images: Mapping[str, Tensor]) -> dict[str, Outputs]:
        """What each of them says."""
        return {name: decoupled(outputs) for name, outputs in answers.items()}


class KDCL(Collaboration):
    """Each peer learns from one ensemble of all.

    Source: Guo et al., "Online Knowledge Distillation via Collaborative Learning", CVPR 2020.

    Args:
        ensemble: ``naive``: the mean of the logits; ``min_logit``: see `min_logit`; ``linear``: the sum of the logits
            by the weights of least squares on the batch, see `least_squares_weights`, over all ranks.

    Raises:
        ValueError: if there is no such ensemble.
    """

    def __init__(self, ensemble: Literal["naive", "min_logit", "linear"] = "min_logit") -> None:
        if ensemble not in ("naive", "min_logit", "linear"):
            raise ValueError(f"ensemble must be naive, min_logit or linear, got {ensemble!r}")
        self.ensemble = ensemble
        self._peers: list[str] = []

    def teachers_of(self, learner: Learner, learners: Sequence[Learner]) -> list[str]:
        """The ensemble; nobody teaches a branch."""
        self._peers = two_at_least(learners, "KDCL")
        return [] if learner.branch is not None else [ENSEMBLE]

    def teacher_plan(self, teacher: str, plans: Mapping[str, TapPlan]) -> TapPlan:
        """An ensemble has logits only."""
        return TapPlan({}, {LOGITS: plans[self._peers[0]].shapes[LOGITS]})

    def teach(self, answers: Mapping[str, Outputs], target: Tensor, images: Mapping[str, Tensor]) -> dict[str, Outputs]:
        """What the ensemble says."""
        logits = torch.stack([answers[name].logits.detach().float() for name in self._peers])
        return {ENSEMBLE: Outputs(self._mixed(logits, target), {})}

    def _mixed(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.ensemble == "min_logit":
            return min_logit(logits, target)
        if self.ensemble == "naive":
            return logits.mean(dim=0)
        products = summed(error_products(logits, target))
        return torch.einsum("k,knc->nc", least_squares_weights(products).to(logits.dtype), logits)


class ONE(Collaboration):
    """Each branch learns from the peer that it belongs to, which learns from the labels.

    Of a `BranchedNetwork` with terms ``ce`` and ``kd`` (`SoftTarget` at T = 3) this is CE of every branch and of the
    gated ensemble, and T^2 KL(p_ensemble || p_branch) of every branch. Of a `MultiExitNetwork` the deepest classifier
    teaches every exit.

    Sources: Lan, Zhu, Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018, eq. 4 to 7; Zhang et
    al., "Be Your Own Teacher", ICCV 2019, section 3.
    """

    def teachers_of(self, learner: Learner, learners: Sequence[Learner]) -> list[str]:
        """The peer that a branch belongs to; nobody teaches the peer itself."""
        if learner.branch is not None:
            return [learner.peer]
        if not any(other.branch is not None and other.peer == learner.peer for other in learners):
            raise ValueError(
                f"ONE needs branches, and peer {learner.name!r} has none: make it a BranchedNetwork or MultiExitNetwork"
            )
        return []

    def teach(self, answers: Mapping[str, Outputs], target: Tensor, images: Mapping[str, Tensor]) -> dict[str, Outputs]:
        """What each peer says."""
        return {name: decoupled(outputs) for name, outputs in answers.items()}
