"""Criteria: named, weighted terms; the YAML is the formula."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

from torch import Tensor, nn

from kd_lightning.batch import Batch
from kd_lightning.distillers.schedules import Complement, Constant, Schedule
from kd_lightning.losses.base import MAY_BE_UNKNOWN, NEEDS, OF_THE_BATCH, OF_THE_RUN, Loss
from kd_lightning.models import Outputs
from kd_lightning.models.tap_plan import TapPlan, several
from kd_lightning.models.taps import LOGITS
from kd_lightning.seeds import run_seed, seeded

DEFAULT = "default"


@dataclass
class Term:
    """One term of the formula.

    Args:
        loss: A `Loss`, or any module with ``forward(student, teacher, target)`` that returns a scalar.
        weight: A number, or a `Schedule` over the epochs; it is looked at once in an epoch. A term that weighs 0 now is
            not computed.
        student: Tap or taps of the student: ``stages``, ``stage:2``, ``last_stage``, ``stem+stages``, ``embedding``,
            ``last_map``, ``attention``, ``logits``, or names of submodules; ``default`` is what the loss states, logits
            for a plain module.
        teacher: Tap or taps of the teacher; null where no teacher is asked.
        view: The view of the batch that both look at.
        views: In place of it: those that the student looks at; of several, the loss gets a list in this order.
        teacher_views: Those that the teacher looks at; null for the same.
    """

    loss: Loss | nn.Module
    weight: float | Schedule = 1.0
    student: str | list[str] = DEFAULT
    teacher: str | list[str] | None = DEFAULT
    view: str = DEFAULT
    views: list[str] | None = None
    teacher_views: list[str] | None = None

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

    def student_taps(self) -> list[str]:
        """Names of the student's taps."""
        return _names(self.taps()[0])

    def teacher_taps(self) -> list[str]:
        """Names of the teacher's taps; empty where no teacher is asked."""
        return _names(self.taps()[1])

    def student_looks(self) -> list[str]:
        """The views that the student looks at."""
        return [self.view] if self.views is None else self.views

    def teacher_looks(self) -> list[str]:
        """The views that the teacher looks at."""
        return self.student_looks() if self.teacher_views is None else self.teacher_views


def _names(taps: str | Sequence[str] | None) -> list[str]:
    return [] if taps is None else [taps] if isinstance(taps, str) else list(taps)


def _picked(outputs: Outputs, taps: str | Sequence[str]) -> Tensor | list[Tensor]:
    if isinstance(taps, str):
        return outputs.logits if taps == LOGITS else outputs.taps[taps]
    return [value for name in taps for value in several(_picked(outputs, name))]


def _seen(outputs: Mapping[str, Outputs], views: Sequence[str], taps: str | Sequence[str]) -> Tensor | list[Tensor]:
    if len(views) == 1:
        return _picked(outputs[views[0]], taps)
    return [value for name in views for value in several(_picked(outputs[name], taps))]


def tied(terms: Mapping[str, Term]) -> dict[str, Term]:
    """The terms, with what each `Complement` weighs beside the others.

    Raises:
        ValueError: if there is nothing that it could be the complement of.
    """
    weights, found = {name: term.schedule() for name, term in terms.items()}, dict(terms)
    for name, term in terms.items():
        if isinstance(term.weight, Complement):
            try:
                found[name] = replace(term, weight=term.weight.beside(weights))
            except ValueError as error:
                raise ValueError(f"criteria.{name}: {error}") from error
    return found


def shapes_of(plan: TapPlan | None, taps: Sequence[str]) -> list[tuple[int, ...]]:
    """Shapes of the parts of a term's taps, in order."""
    return [] if plan is None else [shape for name in taps for shape in several(plan.shapes[name])]


class Due(NamedTuple):
    """An active term in an epoch: what it weighs, where both look, and what of the batch the loss needs to know."""

    name: str
    weight: float
    loss: nn.Module
    student: tuple[Sequence[str], str | Sequence[str]]
    teacher: tuple[Sequence[str], str | Sequence[str]] | None
    of_the_batch: tuple[str, ...]
    facts: Mapping[str, object]


class Now(NamedTuple):
    """What is asked several times a step, computed once an epoch."""

    epoch: int
    due: list[Due]
    asks_teacher: frozenset[str]


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
            if term.views == [] or term.teacher_views == []:
                raise ValueError(f"criteria.{name}: views and teacher_views must name a view, or be null; got []")
            if "." in name or name == "loss":
                raise ValueError(
                    f"criteria must not have a term called {name!r}: it is the name of the sum, or has a dot"
                )
        self.terms = tied(terms)
        self.losses = nn.ModuleDict({name: term.loss for name, term in terms.items()})
        self._views = frozenset(view for term in terms.values() for view in term.student_looks())
        self._facts: dict[str, dict[str, object]] = {}
        self._now: Now | None = None
        self._epochs: int | None = None

    @staticmethod
    def _needs(term: Term) -> frozenset[str]:
        return term.loss.needs if isinstance(term.loss, Loss) else frozenset()

    def needs(self) -> frozenset[str]:
        """All that the losses ask for."""
        return frozenset().union(*(self._needs(term) for term in self.terms.values()))

    def student_taps(self) -> list[str]:
        """Names of all taps of the student."""
        return sorted({name for term in self.terms.values() for name in term.student_taps()})

    def teacher_taps(self) -> list[str]:
        """Names of all taps of the teacher; empty if no term asks it."""
        return sorted({name for term in self.terms.values() for name in term.teacher_taps()})

    def views(self) -> frozenset[str]:
        """Names of the views that the student looks at."""
        return self._views

    def build(self, student: TapPlan, teacher: TapPlan | None) -> None:
        """Tell every loss the shapes of its taps; its adapters start from (seed, name of the term).

        Raises:
            ValueError: if a loss cannot match these shapes.
        """
        for name, term in self.terms.items():
            if not isinstance(term.loss, Loss):
                continue
            try:
                with seeded(run_seed(), "adapters", name):
                    term.loss.build(
                        shapes_of(student, term.student_taps()) * len(term.student_looks()),
                        shapes_of(teacher, term.teacher_taps()) * len(term.teacher_looks()),
                    )
            except ValueError as error:
                raise ValueError(f"criteria.{name}: {error}") from error

    def inform(self, fact: Callable[[str, Term], object]) -> None:
        """Tell every loss what it needs to know of the run, and every schedule how many ``epochs`` it has.

        Args:
            fact: From a need and the term that has it.

        Raises:
            ValueError: if nobody knows it.
        """
        self._now = None
        for name, term in self.terms.items():
            try:
                self._facts[name] = {need: fact(need, term) for need in sorted(self._needs(term) & OF_THE_RUN)}
                if isinstance(term.weight, Schedule):
                    self._epochs = cast(int | None, fact("epochs", term))
                    term.weight(0, self._epochs)  # a share of what is not known is an error here, not in some epoch
            except ValueError as error:
                raise ValueError(f"criteria.{name}: {error}") from error

    def notices(self) -> list[str]:
        """What a user should know before the training, by the losses that know the training set."""
        found = []
        for name, facts in self._facts.items():
            loss, targets = self.terms[name].loss, facts.get("train_targets")
            if isinstance(loss, Loss) and isinstance(targets, Tensor) and (text := loss.notice(len(targets))):
                found.append(f"criteria.{name}: {text}")
        return found

    def active(self, epoch: int) -> dict[str, float]:
        """Weights that are not 0 in an epoch, by the name of the term."""
        return {due.name: due.weight for due in self._in(epoch).due}

    def asks_teacher(self, epoch: int) -> frozenset[str]:
        """Views on which some term that is active in an epoch asks the teacher."""
        return self._in(epoch).asks_teacher

    def _in(self, epoch: int) -> Now:
        if self._now is None or self._now.epoch != epoch:
            weights = {name: term.schedule()(epoch, self._epochs) for name, term in self.terms.items()}
            due = [self._due(name, weight) for name, weight in weights.items() if weight != 0]
            asking = [term for name, *_ in due if (term := self.terms[name]).teacher_taps()]
            self._now = Now(epoch, due, frozenset(view for term in asking for view in term.teacher_looks()))
        return self._now

    def _due(self, name: str, weight: float) -> Due:
        term = self.terms[name]
        taps, teacher_taps = term.taps()
        student = term.student_looks(), taps
        teacher = None if teacher_taps is None else (term.teacher_looks(), teacher_taps)
        of_the_batch = tuple(sorted(self._needs(term) & OF_THE_BATCH))
        return Due(name, weight, term.loss, student, teacher, of_the_batch, self._facts.get(name, {}))

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
        due = self._in(epoch).due
        if not due:
            raise ValueError(f"every term of criteria weighs 0 in epoch {epoch}: there is nothing to learn")
        given = {"index": batch.index, "number": batch.number, "epoch": epoch}
        total: Tensor | None = None
        values: dict[str, Tensor] = {}
        for name, weight, loss, looks, teacher_looks, of_the_batch, facts in due:
            needed: dict[str, object] = {**{need: given[need] for need in of_the_batch}, **facts}
            if missing := [need for need, value in needed.items() if value is None and need not in MAY_BE_UNKNOWN]:
                raise ValueError(f"criteria.{name}: the loss needs {missing}, which this DataLoader does not give")
            told = None if teacher_looks is None else _seen(teacher, *teacher_looks)
            try:
                value = cast(Tensor, loss(_seen(student, *looks), told, batch.target, **needed))
            except ValueError as error:
                raise ValueError(f"criteria.{name}: {error}") from error
            if value.ndim != 0:
                raise ValueError(f"criteria.{name}: a loss must return a scalar, got shape {tuple(value.shape)}")
            values[name] = value.detach()
            total = weight * value if total is None else total + weight * value
        return cast(Tensor, total), values
