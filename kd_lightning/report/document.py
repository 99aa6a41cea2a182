"""The document: what the page of a comparison has, from headlines to footer."""

from importlib import metadata

from kd_lightning.report.comparison import Comparison
from kd_lightning.report.methods import Method, Row, tested_on
from kd_lightning.report.page import Callout, Headline, Report, page
from kd_lightning.report.sections import (
    accuracy,
    against_teacher,
    calibration,
    dark_knowledge,
    differences,
    features,
    learning_curves,
    missed,
    parts,
)


def headlines(rows: list[Row]) -> list[Headline]:
    """The best student of a teacher in four figures, if there is one."""
    distilled = [row for row in rows if "teacher_top1" in row.figures]
    if not distilled:
        return []
    best = max(distilled, key=lambda row: row.figures["top1"].mean)
    name, seeds = best.method.name, len(best.method.runs)
    note = f"{name}, {seeds} seed{'s' if seeds > 1 else ''}"
    shown = [Headline("student's top-1", f"{100 * best.figures['top1'].mean:.2f} %", note)]
    shown.append(Headline("teacher's top-1", f"{100 * best.figures['teacher_top1'].mean:.2f} %"))
    if best.gap_recovered is not None:
        shown.append(Headline("gap recovered", f"{best.gap_recovered:.0%}", "of student alone to teacher"))
    if best.compression is not None:
        shown.append(Headline("compression", f"{best.compression:.1f}x", "parameters"))
    return shown


def images(methods: list[Method]) -> str:
    """How many test images of how many classes there are, for each set of them."""
    sets: dict[object, list[Method]] = {}
    for method in methods:
        sets.setdefault(tested_on(method), []).append(method)
    said = []
    for same in sets.values():
        run, names = same[0].runs[0], ", ".join(method.name for method in same)
        of_whom = f" ({names})" if len(sets) > 1 else ""
        said.append(f"{len(run.target):,} test images of {len(run.classes)} classes{of_whom}")
    return "; ".join(said)


def as_page(comparison: Comparison) -> str:
    """A comparison as one HTML file that needs nothing else."""
    methods = [row.method for row in comparison.rows]
    runs = sum(len(method.runs) for method in methods)
    sections = [
        *accuracy(comparison),
        *parts(comparison),
        *differences(comparison),
        *learning_curves(methods),
        *calibration(methods),
        *against_teacher(methods),
        *missed(methods),
        *dark_knowledge(methods),
        *features(methods),
    ]
    return page(
        Report(
            "Distillation report",
            f"{len(methods)} methods, {runs} runs, {images(methods)}. {comparison.tested()}",
            headlines(list(comparison.rows)),
            [Callout(f"{name}: {flag.name}.", flag.said) for name, found in comparison.flags.items() for flag in found],
            sections,
            footer=f"Made by kd-lightning {metadata.version('kd_lightning')} of "
            + ", ".join(str(run.run.path) for method in methods for run in method.runs),
        )
    )
