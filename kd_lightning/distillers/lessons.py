"""Lessons: the terms of each learner from each of its teachers, as one criteria."""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from torch import Tensor, nn

from kd_lightning.distillers.criteria import Criteria, Term, tied
from kd_lightning.distillers.schedules import Schedule
from kd_lightning.distillers.tap_table import tap_table
from kd_lightning.models import Outputs, TapPlan


@dataclass(frozen=True)
class Share(Schedule):
    """An equal part of a weight.

    Args:
        whole: The weight.
        count: Into how many parts it is divided, >= 1.
    """

    whole: Schedule
    count: int

    def __call__(self, epoch: int, epochs: int | None) -> float:
        """The part in an epoch, counted from 0, of so many."""
        return self.whole(epoch, epochs) / self.count


@dataclass(frozen=True)
class Lesson:
    """Who learns from whom on which view.

    Attributes:
        learner: A peer or a branch.
        teacher: Who teaches; None for terms without a teacher.
        view: As the term states it.
    """

    learner: str
    teacher: str | None
    view: str

    @property
    def key(self) -> str:
        """Under which the answers are handed to the criteria."""
        return f"{self.learner} < {self.teacher} @ {self.view}"


def checked_names(names: Sequence[str]) -> None:
    """Let names of peers pass.

    Raises:
        ValueError: if one is no identifier.
    """
    if wrong := [name for name in names if not name.isidentifier()]:
        raise ValueError(f"peers must have names of letters, digits and underscores, got {wrong}")


class Lessons:
    """The terms of all learners; a term with several teachers is the mean over them, one without is there once.

    Every pair of learner and teacher has a copy of its own of a term's loss, as adapters and memories need.

    Args:
        terms: Learner -> its terms by name.
        teachers: Learner -> who teaches it.

    Raises:
        ValueError: if two terms would be logged under one name, or one states several views.
    """

    def __init__(self, terms: Mapping[str, Mapping[str, Term]], teachers: Mapping[str, Sequence[str]]) -> None:
        self.by_key: dict[str, Lesson] = {}
        self.logged: dict[str, str] = {}
        self.learner_of: dict[str, str] = {}
        flat: dict[str, Term] = {}
        for learner, own in terms.items():
            for name, term in tied(own).items():
                if term.views is not None or term.teacher_views is not None:
                    raise ValueError(
                        f"criteria.{name}: among peers a term has one view, got views {term.views} and teacher_views "
                        f"{term.teacher_views}; a peer's own view is its `view`"
                    )
                asked: Sequence[str | None] = teachers[learner] if term.teacher_taps() else [None]
                for teacher in asked:
                    lesson = Lesson(learner, teacher, term.view)
                    entry = f"{learner}_{name}" + (f"_from_{teacher}" if len(asked) > 1 else "")
                    if entry in flat:
                        raise ValueError(f"peers and criteria must not give two terms one name, got {entry!r} twice")
                    weight = Share(term.schedule(), len(asked)) if len(asked) > 1 else term.weight
                    flat[entry] = replace(term, loss=copy.deepcopy(term.loss), weight=weight, view=lesson.key)
                    self.by_key[lesson.key] = lesson
                    self.logged[entry], self.learner_of[entry] = f"{learner}_{name}", learner
        self.criteria = Criteria(flat)
        self.restrict(terms)

    def of(self, chosen: Callable[[Lesson], bool]) -> Criteria | None:
        """The criteria of some lessons, with the very losses; None if there are none."""
        terms = {name: term for name, term in self.criteria.terms.items() if chosen(self.by_key[term.view])}
        return Criteria(terms) if terms else None

    def student_taps(self, learners: Sequence[str]) -> list[str]:
        """Taps that some learners are asked for as such."""
        found = self.of(lambda lesson: lesson.learner in learners)
        return found.student_taps() if found else []

    def teacher_taps(self, teacher: str) -> list[str]:
        """Taps that a teacher is asked for."""
        found = self.of(lambda lesson: lesson.teacher == teacher)
        return found.teacher_taps() if found else []

    def build(self, plans: Mapping[str, TapPlan], teacher_plan: Callable[[str], TapPlan]) -> None:
        """Tell every loss the shapes of its taps.

        Args:
            plans: Of the learners.
            teacher_plan: Of a teacher.

        Raises:
            ValueError: if a loss cannot match them, or a teacher does not have the tap.
        """
        for lesson in self.by_key.values():
            criteria = self.of(lesson.__eq__)
            if criteria is None:
                continue
            plan = None if lesson.teacher is None else teacher_plan(lesson.teacher)
            if plan is not None and (missing := set(criteria.teacher_taps()) - plan.shapes.keys()):
                raise ValueError(
                    f"criteria of {lesson.learner}: {lesson.teacher} gives logits only, not {sorted(missing)}"
                )
            criteria.build(plans[lesson.learner], plan)

    def losses_of(self, learners: Sequence[str]) -> nn.ModuleDict:
        """The losses of some learners, whose adapters are trained with them."""
        return nn.ModuleDict(
            {name: loss for name, loss in self.criteria.losses.items() if self.learner_of[name] in learners}
        )

    def restrict(self, learners: Collection[str]) -> None:
        """Say whose terms are computed in this process."""
        self.learners = set(learners)
        self.here = self.of(lambda lesson: lesson.learner in self.learners)
        self.alone = self.of(lambda lesson: lesson.learner in self.learners and lesson.teacher is None)

    def inform(self, fact: Callable[[str, Term], object]) -> None:
        """Tell every loss what it needs to know of the run; see `Criteria.inform`."""
        for criteria in (self.here, self.alone):
            if criteria is not None:
                criteria.inform(fact)

    def notices(self) -> list[str]:
        """What a user should know before the training."""
        return [] if self.here is None else self.here.notices()

    def views(self) -> set[str]:
        """Views as the terms state them."""
        return {lesson.view for lesson in self.by_key.values()}

    def spoken(self, answers: Mapping[str, Mapping[str, Outputs]]) -> dict[str, Outputs]:
        """Answers by view and learner, as the criteria take them."""
        return {
            key: answers[lesson.view][lesson.learner]
            for key, lesson in self.by_key.items()
            if lesson.learner in self.learners
        }

    def taught(self, epoch: int, ask: Callable[[str], Mapping[str, Outputs]]) -> tuple[dict[str, Outputs], Criteria]:
        """What teachers say, for the criteria, and the criteria of this step: without a teacher where none speaks.

        Args:
            epoch: Counted from 0.
            ask: From a view, as a term states it, to what each teacher says there; asked where a term needs it.

        Raises:
            ValueError: if nobody has anything to learn in this step.
        """
        if self.here is None:
            raise ValueError("no term is computed in this process: every learner needs one")
        asked = {key: self.by_key[key] for key in self.here.asks_teacher(epoch)}
        said: dict[str, Outputs] = {}
        for view in sorted({lesson.view for lesson in asked.values()}):
            heard = ask(view)
            for key, lesson in asked.items():
                if lesson.view == view and lesson.teacher in heard:
                    said[key] = heard[cast(str, lesson.teacher)]
        if not asked or said:
            return said, self.here
        if self.alone is None:
            raise ValueError("nobody teaches in this step: give every peer a term without a teacher")
        return said, self.alone

    def tables(self, plans: Mapping[str, TapPlan], teacher_plan: Callable[[str], TapPlan]) -> Iterator[str]:
        """For each pair of learner and teacher, what is matched with what; see `tap_table`."""
        for lesson in self.by_key.values():
            criteria = self.of(lesson.__eq__)
            if criteria is not None:
                theirs = None if lesson.teacher is None else teacher_plan(lesson.teacher)
                yield tap_table(criteria, plans[lesson.learner], theirs)

    def means(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values by entry, as means under the names that are logged."""
        several: dict[str, list[Tensor]] = {}
        for entry, value in values.items():
            several.setdefault(self.logged[entry], []).append(value)
        return {name: sum(parts[1:], parts[0]) / len(parts) for name, parts in several.items()}
