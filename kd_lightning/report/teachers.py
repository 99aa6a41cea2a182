"""The teachers of the methods, each once."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from kd_lightning.report.examined import Examined
from kd_lightning.report.methods import Method


class Taught(NamedTuple):
    """Methods whose first runs have the same teacher, and the teacher's logits ``[M, C]``."""

    methods: list[Method]
    teacher: Tensor

    @property
    def run(self) -> Examined:
        """The first of these runs."""
        return self.methods[0].runs[0]

    @property
    def names(self) -> str:
        """The names of the methods."""
        return ", ".join(method.name for method in self.methods)


def taught(methods: Sequence[Method]) -> list[Taught]:
    """Each different teacher, with the methods that it teaches; two that answer alike are one."""
    found: list[Taught] = []
    for method in methods:
        teacher = method.runs[0].teacher
        if teacher is None:
            continue
        known = next((each for each in found if each.teacher.equal(teacher)), None)
        if known is not None:
            known.methods.append(method)
        else:
            found.append(Taught([method], teacher))
    return found
