"""The table of the taps: what is matched with what, of which shapes, by which adapters."""

import io

from rich.console import Console
from rich.table import Table

from kd_lightning.distillers.criteria import Criteria
from kd_lightning.models import TapPlan
from kd_lightning.models.tap_plan import several

WIDTH = 120


def parts(plan: TapPlan | None, taps: list[str]) -> str:
    """A line for each part of the taps: where it is, and its shape without the batch."""
    if plan is None or not taps:
        return "-"
    lines = []
    for tap in taps:
        names = several(plan.names.get(tap, tap))  # what the student returns has no other name
        lines += [f"{n}  {' x '.join(map(str, s[1:]))}" for n, s in zip(names, several(plan.shapes[tap]), strict=True)]
    return "\n".join(lines)


def tap_table(criteria: Criteria, student: TapPlan, teacher: TapPlan | None) -> str:
    """For each term: the taps of student and teacher with their shapes, and the parameters of its adapters.

    Args:
        criteria: Built.
        student: Where the student's taps are.
        teacher: Where the teacher's taps are, if there is one.
    """
    table = Table("term", "loss", "student", "teacher", "adapter parameters", title="what is matched")
    for name, term in criteria.terms.items():
        adapters = sum(parameter.numel() for parameter in term.loss.parameters())
        table.add_row(
            name,
            type(term.loss).__name__.removeprefix("FSDP"),
            parts(student, term.student_taps()),
            parts(teacher, term.teacher_taps()),
            f"{adapters:,}" if adapters else "-",
        )
    shown = io.StringIO()
    Console(force_jupyter=False, file=shown, width=WIDTH).print(table)
    return shown.getvalue().rstrip()
