"""The comparison of runs: what a report says, before it is drawn."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from torch import Tensor

from kd_lightning.report.examined import Examined
from kd_lightning.report.flags import Flag, flags
from kd_lightning.report.grouping import by_method
from kd_lightning.report.intervals import Interval, difference_over_images, difference_over_seeds
from kd_lightning.report.methods import Method, Row, as_json, rows, student_of, tested_on
from kd_lightning.report.table import TableData, costs, for_markdown, parts, reached


class Difference(NamedTuple):
    """Top-1 of one method less that of another, in [-1, 1], with its 95 % confidence interval."""

    first: str
    second: str
    interval: Interval


class Comparison(NamedTuple):
    """Methods compared.

    Attributes:
        rows: One for each method.
        differences: Between each two methods that train the same student.
        flags: Method -> what its figures warn of.
        checkpoint: Which checkpoint of each run was tested: ``last`` or ``best``.
    """

    rows: Sequence[Row]
    differences: Sequence[Difference]
    flags: Mapping[str, Sequence[Flag]]
    checkpoint: str = "last"

    def tested(self) -> str:
        """Which checkpoint was tested, in a sentence."""
        return f"Tested at the {self.checkpoint} checkpoint of each run."

    def tables(self) -> dict[str, TableData]:
        """Title -> table."""
        made = {"What it reaches": reached(self.rows)}
        if any(row.parts for row in self.rows):
            made["What its parts reach"] = parts(self.rows)
        made["What it costs"] = costs(self.rows)
        if self.differences:
            made["Differences in top-1"] = differences_table(self.differences)
        return made

    def as_json(self) -> dict[str, Any]:
        """Everything as plain numbers."""
        return {
            "checkpoint": self.checkpoint,
            "methods": {row.method.name: as_json(row) for row in self.rows},
            "differences": [
                {"first": each.first, "second": each.second, **each.interval._asdict()} for each in self.differences
            ],
            "flags": {name: [flag._asdict() for flag in found] for name, found in self.flags.items() if found},
        }

    def as_markdown(self) -> str:
        """The tables and the flags, in Markdown."""
        shown = [f"{self.tested()}\n"]
        shown += [f"## {title}\n\n{for_markdown(table)}" for title, table in self.tables().items()]
        warned = [f"- {name}: {flag.said}\n" for name, found in self.flags.items() for flag in found]
        shown += ["## Worth a look\n\n" + "".join(warned)] if warned else []
        return "\n".join(shown)


def differences_table(differences: Sequence[Difference]) -> TableData:
    """Differences in percentage points."""
    cells = [
        [
            f"{each.first} less {each.second}",
            f"{100 * each.interval.difference:+.2f}",
            f"{100 * each.interval.low:+.2f} to {100 * each.interval.high:+.2f}",
            each.interval.how,
        ]
        for each in differences
    ]
    return TableData(["", "points", "95 % interval", "over"], cells)


def difference(first: Method, second: Method) -> Difference | None:
    """The difference of two methods: over seeds where both have several, else over the images of their first runs.

    None where they were tested on other images.
    """
    if tested_on(first) != tested_on(second):
        return None
    if min(len(first.runs), len(second.runs)) > 1:
        accuracies = [[_correct(run).double().mean().item() for run in method.runs] for method in (first, second)]
        return Difference(first.name, second.name, difference_over_seeds(*accuracies))
    correct = [_correct(method.runs[0]) for method in (first, second)]
    return Difference(first.name, second.name, difference_over_images(*correct))


def _correct(run: Examined) -> Tensor:
    return run.student.argmax(dim=1) == run.target


def compare(results: Sequence[Examined], checkpoint: str = "last") -> Comparison:
    """The comparison of runs, examined at a checkpoint; those that differ only in their seed are one method."""
    found = {str(run.run.path): run for run in results}
    groups = by_method({path: run.config for path, run in found.items()})
    methods = [Method(name, [found[path] for path in paths]) for name, paths in groups.items()]
    pairs = [
        difference(second, first)
        for first, second in combinations(methods, 2)
        if student_of(first.runs[0].config) == student_of(second.runs[0].config)
    ]
    made = rows(methods)
    found_flags = {row.method.name: flags_of(row) for row in made}
    return Comparison(made, [pair for pair in pairs if pair is not None], found_flags, checkpoint)


def flags_of(row: Row) -> list[Flag]:
    """What the figures of a method's first run warn of; nothing where no frozen teacher answers."""
    run = row.method.runs[0]
    if run.teacher is None or run.teacher_profile is None:
        return []
    sizes = run.student_profile.params, run.teacher_profile.params
    return flags(run.student, run.teacher, run.target, run.soft_targets, run.temperature, *sizes)
