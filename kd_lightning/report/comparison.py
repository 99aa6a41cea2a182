"""The comparison of runs: what a report says, before it is drawn."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from torch import Tensor

from kd_lightning.report.examined import Examined
from kd_lightning.report.flags import Flag, flags
from kd_lightning.report.grouping import by_method
from kd_lightning.report.intervals import Interval, difference_over_images, difference_over_seeds
from kd_lightning.report.methods import Method, Row, as_json, rows, student_of
from kd_lightning.report.table import TableData, costs, for_markdown, reached


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
    """

    rows: Sequence[Row]
    differences: Sequence[Difference]
    flags: Mapping[str, Sequence[Flag]]

    def tables(self) -> dict[str, TableData]:
        """Title -> table."""
        made = {"What it reaches": reached(self.rows), "What it costs": costs(self.rows)}
        if self.differences:
            made["Differences in top-1"] = differences_table(self.differences)
        return made

    def as_json(self) -> dict[str, Any]:
        """Everything as plain numbers."""
        return {
            "methods": {row.method.name: as_json(row) for row in self.rows},
            "differences": [
                {"first": each.first, "second": each.second, **each.interval._asdict()} for each in self.differences
            ],
            "flags": {name: [flag._asdict() for flag in found] for name, found in self.flags.items() if found},
        }

    def as_markdown(self) -> str:
        """The tables and the flags, in Markdown."""
        parts = [f"## {title}\n\n{for_markdown(table)}" for title, table in self.tables().items()]
        warned = [f"- {name}: {flag.said}\n" for name, found in self.flags.items() for flag in found]
        return "\n".join([*parts, *(["## Worth a look\n\n" + "".join(warned)] if warned else [])])


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

    None where they were tested on other images, so that single runs cannot be paired.
    """
    if min(len(first.runs), len(second.runs)) > 1:
        accuracies = [[_correct(run).double().mean().item() for run in method.runs] for method in (first, second)]
        return Difference(first.name, second.name, difference_over_seeds(*accuracies))
    one, other = first.runs[0], second.runs[0]
    if not one.target.equal(other.target):
        return None
    return Difference(first.name, second.name, difference_over_images(_correct(one), _correct(other)))


def _correct(run: Examined) -> Tensor:
    return run.student.argmax(dim=1) == run.target


def compare(results: Sequence[Examined]) -> Comparison:
    """The comparison of examined runs; those that differ only in their seed are one method."""
    found = {str(run.run.path): run for run in results}
    groups = by_method({path: run.config for path, run in found.items()})
    methods = [Method(name, [found[path] for path in paths]) for name, paths in groups.items()]
    pairs = [
        difference(second, first)
        for first, second in combinations(methods, 2)
        if student_of(first.runs[0].config) == student_of(second.runs[0].config)
    ]
    made = rows(methods)
    return Comparison(
        made, [pair for pair in pairs if pair is not None], {row.method.name: flags_of(row) for row in made}
    )


def flags_of(row: Row) -> list[Flag]:
    """What the figures of a method's first run warn of; nothing where no frozen teacher answers."""
    run = row.method.runs[0]
    if run.teacher is None or run.teacher_profile is None:
        return []
    sizes = run.student_profile.params, run.teacher_profile.params
    return flags(run.student, run.teacher, run.target, run.temperature, *sizes)
