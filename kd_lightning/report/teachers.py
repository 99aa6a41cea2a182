"""The teachers of the methods, each once."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from kd_lightning.report.examined import Examined
from kd_lightning.report.methods import Method


class Taught(NamedTuple):
    """Methods whose first runs have the same teacher, the first of these runs, and the teacher's logits ``[M, C]``."""

    names: list[str]
    run: Examined
    teacher: Tensor


def taught(methods: Sequence[Method]) -> list[Taught]:
    """Each different teacher, with the methods that it teaches; two that answer alike are one."""
    found: list[Taught] = []
    for method in methods:
        run = method.runs[0]
        if run.teacher is None:
            continue
        known = next((each for each in found if each.teacher.equal(run.teacher)), None)
        if known is not None:
            known.names.append(method.name)
        else:
            found.append(Taught([method.name], run, run.teacher))
    return found
