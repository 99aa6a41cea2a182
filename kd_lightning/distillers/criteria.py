"""Criteria: named, weighted terms; the YAML is the formula."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from kd_lightning.batch import Batch
from kd_lightning.distillers.schedules import Constant, Schedule
from kd_lightning.losses.base import NEEDS, Loss
from kd_lightning.models.taps import LOGITS
from kd_lightning.models.teacher import Outputs

DEFAULT = "default"
Shape = tuple[int, ...]


@dataclass
class Term:
    """One term of the formula.

    Args:
        loss: A `Loss`, or any module with ``forward(student, teacher, target)`` that returns a scalar.
        weight: A number, or a `Schedule` over the epochs. A term that weighs 0 now is not computed.
        student: Tap or taps of the student; ``default`` is what the loss states, logits for a plain module.
        teacher: Tap or taps of the teacher; null where no teacher is asked.
        view: The view of the batch that both look at.
    """

    loss: Loss | nn.Module
    weight: float | Schedule = 1.0
    student: str | list[str] = DEFAULT
    teacher: str | list[str] | None = DEFAULT
    view: str = DEFAULT

    def schedule(self) -> Schedule:
        """The weight as a schedule."""
        return self.weight if isinstance(self.weight, Schedule) else Constant(self.weight)

    def taps(self) -> tuple[str | Sequence[str], str | Sequence[str] | None]:
        """Taps of the student and of the teacher, with the loss's defaults filled in."""
        loss = self.loss
        student_default = loss.student_tap if isinstance(loss, Loss) else LOGITS
        teacher_default = loss.teacher_tap if isinstance(loss, Loss) else LOGITS
        return (
            student_default if self.student == DEFAULT else self.student,
            teacher_default if self.teacher == DEFAULT else self.teacher,
        )


def _names(taps: str | Sequence[str] | None) -> list[str]:
    return [] if taps is None else [taps] if isinstance(taps, str) else list(taps)


def _picked(outputs: Outputs, taps: str | Sequence[str]) -> Tensor | list[Tensor]:
    values = [outputs.logits if name == LOGITS else outputs.taps[name] for name in _names(taps)]
    return values[0] if isinstance(taps, str) else values


class Criteria(nn.Module):
    """The weighted sum of the terms. Its parameters are the losses' adapters.

    Args:
        terms: Name -> term.

    Raises:
        ValueError: if there is no term, or a loss asks for something that nobody can give.
    """

    def __init__(self, terms: Mapping[str, Term]) -> None:
        super().__init__()
        if not terms:
            raise ValueError("criteria must have at least one term, got none")
        for name, term in terms.items():
            if unknown := self._needs(term) - NEEDS:
                raise ValueError(f"criteria.{name}: the loss needs {sorted(unknown)}, known are {sorted(NEEDS)}")
            if "." in name or name == "loss":
                raise ValueError(
                    f"criteria must not have a term called {name!r}: it is the name of the sum, or has a dot"
                )
        self.terms = dict(terms)
        self.losses = nn.ModuleDict({name: term.loss for name, term in terms.items()})

    @staticmethod
    def _needs(term: Term) -> frozenset[str]:
        return term.loss.needs if isinstance(term.loss, Loss) else frozenset()

    def needs(self) -> frozenset[str]:
        """All that the losses ask for."""
        return frozenset().union(*(self._needs(term) for term in self.terms.values()))

    def student_taps(self) -> list[str]:
        """Names of all taps of the student."""
        return sorted({name for term in self.terms.values() for name in _names(term.taps()[0])})

    def teacher_taps(self) -> list[str]:
        """Names of all taps of the teacher; empty if no term asks it."""
        return sorted({name for term in self.terms.values() for name in _names(term.taps()[1])})

    def views(self) -> set[str]:
        """Names of the views that are looked at."""
        return {term.view for term in self.terms.values()}

    def build(self, student: Mapping[str, Shape], teacher: Mapping[str, Shape]) -> None:
        """Tell every loss the shapes of its taps."""
        for term in self.terms.values():
            taps, teacher_taps = term.taps()
            if isinstance(term.loss, Loss):
                term.loss.build([student[n] for n in _names(taps)], [teacher[n] for n in _names(teacher_taps)])

    def active(self, epoch: int) -> dict[str, float]:
        """Weights that are not 0 in an epoch, by the name of the term."""
        weights = {name: term.schedule()(epoch) for name, term in self.terms.items()}
        return {name: weight for name, weight in weights.items() if weight != 0}

    def asks_teacher(self, epoch: int) -> set[str]:
        """Views on which some term that is active in an epoch asks the teacher."""
        return {self.terms[name].view for name in self.active(epoch) if _names(self.terms[name].taps()[1])}

    def forward(
        self,
        student: Mapping[str, Outputs],
        teacher: Mapping[str, Outputs],
        batch: Batch,
        epoch: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and the unweighted value of each active term, detached.

        Args:
            student: View -> the student's answer.
            teacher: View -> the teacher's answer, for the views on which it is asked.
            batch: What they answered.
            epoch: Counted from 0.

        Raises:
            ValueError: if no term is active, or a loss needs the sample's index and the batch has none.
        """
        active = self.active(epoch)
        if not active:
            raise ValueError(f"every term of criteria weighs 0 in epoch {epoch}: there is nothing to learn")
        given = {"index": batch.index, "number": batch.number, "epoch": epoch}
        total: Tensor | None = None
        values: dict[str, Tensor] = {}
        for name, weight in active.items():
            term = self.terms[name]
            taps, teacher_taps = term.taps()
            needed = {need: given[need] for need in sorted(self._needs(term))}
            if missing := [need for need, value in needed.items() if value is None]:
                raise ValueError(f"criteria.{name}: the loss needs {missing}, which this DataLoader does not give")
            told = None if teacher_taps is None else _picked(teacher[term.view], teacher_taps)
            value = cast(Tensor, term.loss(_picked(student[term.view], taps), told, batch.target, **needed))
            if value.ndim != 0:
                raise ValueError(f"criteria.{name}: a loss must return a scalar, got shape {tuple(value.shape)}")
            values[name] = value.detach()
            total = weight * value if total is None else total + weight * value
        return cast(Tensor, total), values


def reached(loss: Tensor) -> set[Tensor]:
    """The leaf tensors that a scalar's graph leads to, those that ``backward`` would give a gradient."""
    leaves: set[Tensor] = set()
    seen: set[torch.autograd.graph.Node] = set()
    open_nodes = [loss.grad_fn] if loss.grad_fn is not None else []
    while open_nodes:
        node = open_nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if isinstance(variable := getattr(node, "variable", None), Tensor):
            leaves.add(variable)
        open_nodes += [following for following, _ in node.next_functions if following is not None]
    return leaves
