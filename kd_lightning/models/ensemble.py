"""Several teachers that answer as one."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from kd_lightning.batch import Batch
from kd_lightning.models.input_adapter import Views
from kd_lightning.models.stored_outputs import StoredOutputs
from kd_lightning.models.tap_plan import TapPlan, several
from kd_lightning.models.taps import LOGITS
from kd_lightning.models.teacher import Outputs, Teacher

Mean = Literal["logits", "probabilities"]
ByLabel = Literal["cross_entropy", "confidence"]


def combined(logits: Tensor, weights: Tensor, mean: Mean) -> Tensor:
    """The weighted mean of several answers, as logits ``[N, C]``.

    Args:
        logits: ``[K, N, C]``.
        weights: ``[K, N]`` or ``[K, 1]``, summing to 1 over K.
        mean: Of ``logits``; or of ``probabilities``, whose logarithm is the answer.
    """
    if mean == "logits":
        return (weights[:, :, None] * logits).sum(dim=0)
    return (weights[:, :, None].log() + logits.log_softmax(dim=2)).logsumexp(dim=0)


def weights_by_label(logits: Tensor, target: Tensor, by: ByLabel) -> Tensor:
    """Weights ``[K, N]`` of K teachers for each sample, by their cross entropies with the label.

    ``cross_entropy``: softmax_k(-CE_k), which for whole labels is p_k(y) / sum_j p_j(y). ``confidence``:
    (1 - softmax_k(CE_k)) / (K - 1), which is milder: no weight is above 1 / (K - 1).

    Source of both the idea and ``confidence``: Zhang, Chen, Wang, "Confidence-Aware Multi-Teacher Knowledge
    Distillation", ICASSP 2022, eq. 3.

    Args:
        logits: ``[K, N, C]``.
        target: Class indices, int64 ``[N]``, or probabilities, float ``[N, C]``.
        by: Which of the two.

    Raises:
        ValueError: if a sample has no label.
    """
    if target.ndim == 1 and bool((target < 0).any()):
        raise ValueError(
            f"weights {by} need labels, and a sample has none: give weights by name, or null for equal ones"
        )
    ce = torch.stack([F.cross_entropy(each, target, reduction="none") for each in logits])
    if by == "cross_entropy":
        return (-ce).softmax(dim=0)
    return (1 - ce.softmax(dim=0)) / (len(logits) - 1)


class EnsembleTeacher(Teacher):
    """Teachers of any architectures, input sizes and normalisations, which answer with one mean.

    Each is examined before step 0 by its own ``check``. A tap of one of them is ``MEMBER/TAP``, for instance
    ``big/stages`` or ``big/logits``; so terms of their own for each member (as in densely guided distillation: Son et
    al., ICCV 2021) are possible. What is measured in the test never looks at the labels: there, weights by the label
    give way to equal ones.

    Args:
        teachers: Name -> teacher, at least two.
        mean: Of ``logits``; or of ``probabilities``, whose logarithm is then the answer.
        weights: Name -> weight >= 0, divided by their sum; or for each sample by the cross entropy with its label,
            ``cross_entropy`` or ``confidence`` (see `weights_by_label`); None for equal ones.

    Raises:
        ValueError: if there are fewer than two teachers, a name has a slash, or the weights are not theirs.
    """

    def __init__(
        self, teachers: dict[str, Teacher], mean: Mean = "logits", weights: dict[str, float] | ByLabel | None = None
    ) -> None:
        if len(teachers) < 2:
            raise ValueError(f"teachers must be at least two, got {sorted(teachers)}")
        if slashed := [name for name in teachers if "/" in name or not name]:
            raise ValueError(f"teachers must have names without a slash, got {slashed[0]!r}")
        if stored := [name for name, teacher in teachers.items() if isinstance(teacher, StoredOutputs)]:
            raise ValueError(f"teachers must not be StoredOutputs, got {stored[0]!r}: store the ensemble instead")
        if mean not in {"logits", "probabilities"}:
            raise ValueError(f"mean must be logits or probabilities, got {mean!r}")
        self.teachers, self.mean = dict(teachers), mean
        self.by_label: ByLabel | None = None
        given = dict.fromkeys(teachers, 1.0)
        if isinstance(weights, Mapping):
            given = checked(weights, list(teachers))
        elif weights is not None:
            if weights not in {"cross_entropy", "confidence"}:
                raise ValueError(f"weights must be numbers by name, cross_entropy or confidence, got {weights!r}")
            self.by_label = weights
        self.weights = torch.tensor([given[name] / sum(given.values()) for name in teachers])[:, None]
        self.check, self.expected_top1 = False, None

    def setup(self, num_classes: int, views: Views, taps: Sequence[str]) -> None:
        """Set up each teacher with the taps that are its own.

        Raises:
            ValueError: if a tap does not say whose it is.
        """
        wanted: dict[str, list[str]] = {name: [] for name in self.teachers}
        for tap in taps:
            if tap == LOGITS:
                continue
            name, slash, own = tap.partition("/")
            if not slash or name not in wanted:
                raise ValueError(
                    f"teacher tap {tap!r}: of an ensemble it is logits, or MEMBER/TAP with a member of "
                    f"{', '.join(wanted)}"
                )
            wanted[name].append(own)
        names: dict[str, str | list[str]] = {}
        shapes: dict[str, tuple[int, ...] | list[tuple[int, ...]]] = {}
        for name, teacher in self.teachers.items():
            try:
                teacher.setup(num_classes, views, wanted[name])
            except ValueError as error:
                raise ValueError(f"teachers.{name}: {error}") from error
            plan = teacher.plan()
            for tap in wanted[name]:
                places = plan.names.get(tap, LOGITS)
                named = [f"{name}/{place}" for place in several(places)]
                names[f"{name}/{tap}"] = named if isinstance(places, list) else named[0]
                shapes[f"{name}/{tap}"] = plan.shapes[tap]
        self._plan = TapPlan(names, {**shapes, LOGITS: (2, num_classes)})

    def to(self, device: torch.device) -> None:
        """Move all of them to a device."""
        for teacher in self.teachers.values():
            teacher.to(device)

    def shard(self, mesh: DeviceMesh) -> None:
        """Spread each of them over the ranks of a mesh."""
        for teacher in self.teachers.values():
            teacher.shard(mesh)

    def plan(self) -> TapPlan:
        """Where the taps are, and the shapes of them and of ``logits``; known after `setup`."""
        return self._plan

    def members(self) -> dict[str, Teacher]:
        """Each teacher, and the members of one that is an ensemble itself."""
        return {
            f"{name}/{inner}" if len(found) > 1 else name: member
            for name, teacher in self.teachers.items()
            if (found := teacher.members())
            for inner, member in found.items()
        }

    def begin(self, views: Views) -> None:
        """Tell each of the data."""
        for teacher in self.teachers.values():
            teacher.begin(views)

    def follow(self, student: nn.Module) -> None:
        """Tell each of the student."""
        for teacher in self.teachers.values():
            teacher.follow(student)

    def advance(self, student: nn.Module, step: int, steps: float) -> None:
        """Tell each of a step of the student."""
        for teacher in self.teachers.values():
            teacher.advance(student, step, steps)

    def state(self) -> dict[str, Any] | None:
        """The states of those that are trained, by name; None if none is."""
        return {
            name: state for name, teacher in self.teachers.items() if (state := teacher.state()) is not None
        } or None

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Take up the states of those that are trained."""
        for name, teacher in self.teachers.items():
            teacher.restore((state or {}).get(name))

    def examined(self, results: Mapping[str, tuple[float, int]]) -> None:
        """Tell all of the examination."""
        for teacher in self.teachers.values():
            teacher.examined(results)

    def notices(self) -> list[str]:
        """Those of each."""
        return [notice for teacher in self.teachers.values() for notice in teacher.notices()]

    def identity(self) -> dict[str, str]:
        """The facts of each, and how they are combined."""
        facts = {"mean": self.mean, "weights": self.by_label or str(self.weights.flatten().tolist())}
        each = {f"{name}.{key}": text for name, one in self.teachers.items() for key, text in one.identity().items()}
        return facts | each

    def norms(self, tap: str) -> list[tuple[Tensor, Tensor]]:
        """Mean and standard deviation ``[C]`` of the channels of a member's tap, for each part.

        Raises:
            ValueError: if it is not a tap of a member that knows it.
        """
        name, _, own = tap.partition("/")
        return self.teachers[name].norms(own) if name in self.teachers else super().norms(tap)

    def unlabelled(self, batch: Batch, view: str = "default") -> Outputs:
        """The answer with given or equal weights."""
        return self._answer(batch, view, None)

    def __call__(self, batch: Batch, view: str = "default") -> Outputs:
        """The mean of the logits, float32 at least, and the taps of the members."""
        return self._answer(batch, view, self.by_label)

    @torch.no_grad()
    def _answer(self, batch: Batch, view: str, by: ByLabel | None) -> Outputs:
        answers = {name: teacher(batch, view) for name, teacher in self.teachers.items()}
        logits = torch.stack(
            [answer.logits.to(torch.promote_types(answer.logits.dtype, torch.float32)) for answer in answers.values()]
        )
        weights = self.weights.to(logits) if by is None else weights_by_label(logits, batch.target, by)
        taps = {}
        for tap in self._plan.names:
            name, _, own = tap.partition("/")
            taps[tap] = answers[name].logits if own == LOGITS else answers[name].taps[own]
        return Outputs(combined(logits, weights, self.mean), taps)


def checked(weights: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """Weights that belong to these names, in their order.

    Raises:
        ValueError: if a name is missing or unknown, a weight is negative or not finite, or all are 0.
    """
    if set(weights) != set(names):
        raise ValueError(f"weights must be given for {sorted(names)}, got {sorted(weights)}")
    if wrong := [value for value in weights.values() if not 0 <= value < float("inf")]:
        raise ValueError(f"weights must be >= 0 and finite, got {wrong[0]}")
    if not any(weights.values()):
        raise ValueError("weights must not all be 0")
    return {name: float(weights[name]) for name in names}
