"""Who teaches which generation: a given teacher or nobody the first, each later one the one before."""

from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.batch import Batch
from kd_lightning.distillers.criteria import Criteria, Term, shapes_of
from kd_lightning.distillers.teaching import answers, known_of, set_up
from kd_lightning.losses.base import OF_THE_BATCH, Loss
from kd_lightning.models import FrozenTeacher, Outputs, TapPlan, Teacher, Views
from kd_lightning.models.taps import LOGITS


def criteria_without_teacher(
    criteria: Criteria, first: Mapping[str, Term] | None, teacher: Teacher | None
) -> Criteria | None:
    """What generation 0 learns by; None for the criteria themselves, where a teacher is given.

    Args:
        criteria: Of the generations that have a teacher.
        first: Stated for the one that has none; None for the terms of ``criteria`` that ask no teacher.
        teacher: Who teaches it, if anybody does.

    Raises:
        ValueError: if there is nothing to learn by, or the two arguments exclude each other.
    """
    if teacher is not None:
        if first is not None:
            raise ValueError("first is for a generation 0 without a teacher: leave it out, or teacher")
        return None
    if first is None:
        first = {name: term for name, term in criteria.terms.items() if not term.teacher_taps()}
        if not first:
            raise ValueError(
                "every term of criteria asks the teacher, so generation 0 has nothing to learn by: state "
                "first: {ce: {loss: CrossEntropy, teacher: null}}, or give a teacher"
            )
        return Criteria(first)
    for name, term in first.items():
        needs = term.loss.needs - OF_THE_BATCH - {"epochs"} if isinstance(term.loss, Loss) else frozenset()
        if term.teacher_taps() or term.student_taps() != [LOGITS] or needs or any(True for _ in term.loss.parameters()):
            raise ValueError(f"first.{name} must be a loss of logits and labels alone, with teacher: null")
    return Criteria(first)


def check_adapters(criteria: Criteria, its: TapPlan, own: TapPlan) -> None:
    """Let a given teacher pass whose taps need no other adapters than those of the student's own generations.

    Args:
        criteria: Of all generations.
        its: Where the given teacher's taps are.
        own: Where those of a student that has become the teacher are.

    Raises:
        ValueError: if an adapter would have to change with the teacher.
    """
    for name, term in criteria.terms.items():
        there, here = (list(shapes_of(plan, term.teacher_taps())) for plan in (its, own))
        adapted = isinstance(term.loss, Loss) and type(term.loss).build is not Loss.build
        if adapted and there != here:
            raise ValueError(
                f"criteria.{name}: its adapters would change with the teacher, whose taps are {there}, those of the "
                f"student's generations {here}: give a teacher of the student's architecture, or match logits"
            )


class Succession:
    """The teachers of all generations, and which generation is the present one.

    Args:
        first: Who teaches generation 0; None for nobody.
        channels_last: Of the generations' maps when they teach.
    """

    def __init__(self, first: Teacher | None, channels_last: bool) -> None:
        self.first, self.channels_last, self.generation = first, channels_last, 0
        self._previous: FrozenTeacher | None = None

    @property
    def previous(self) -> FrozenTeacher:
        """The generation before; there after `setup`, but without weights that anybody trained before `pass_on`."""
        if self._previous is None:
            raise RuntimeError("setup must be called before a generation teaches")
        return self._previous

    def present(self) -> Teacher | None:
        """Who teaches the present generation."""
        return self.previous if self.generation else self.first

    def setup(self, network: nn.Module, criteria: Criteria, num_classes: int, views: Views) -> TapPlan:
        """Set up whoever will teach, with the taps that the criteria ask for; where those of the first teacher are.

        Args:
            network: Of the student's architecture, for a generation that teaches.
            criteria: Of all generations.
            num_classes: C.
            views: What the data gives.

        Raises:
            ValueError: if the given teacher's taps need adapters of their own, or it changes with the student.
        """
        self._previous = FrozenTeacher(network, check=False, channels_last=self.channels_last)
        own = set_up(self._previous, criteria, num_classes, views)
        if self.first is None:
            return own
        its = set_up(self.first, criteria, num_classes, views)
        if self.first.state() is not None:
            raise ValueError(f"teacher must not change with the student, as a {type(self.first).__name__} does")
        check_adapters(criteria, its, own)
        return its

    def to(self, device: torch.device) -> None:
        """Move all teachers to a device."""
        self.previous.to(device)
        if self.first is not None:
            self.first.to(device)

    def known(self, need: str, term: Term) -> object:
        """What a loss needs to know of the present teacher, see `known_of`; before there is one, of its architecture.

        Raises:
            ValueError: if it is not known.
        """
        return known_of(self.present() or self.previous, need, term)

    def answers(self, batch: Batch, views: Set[str], training: bool) -> dict[str, Outputs]:
        """The present teacher's answer to each of these views; nothing where there is none."""
        teacher = self.present()
        return {} if teacher is None else answers(teacher, batch, views, training)

    def pass_on(self, weights: Mapping[str, Tensor]) -> None:
        """Let a student with these weights be the teacher, and the next generation the present one."""
        self._network().load_state_dict(weights)
        self.generation += 1

    def _network(self) -> nn.Module:
        if self.previous.network is None:
            raise RuntimeError("setup must be called before a generation teaches")
        return self.previous.network

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the generation, and the weights of the one that teaches it."""
        return {"generation": self.generation, "previous": self._network().state_dict() if self.generation else None}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        self.generation = state["generation"]
        if state["previous"] is not None:
            self._network().load_state_dict(state["previous"])
