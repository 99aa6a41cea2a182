"""Sections on methods beside each other: figures, differences, learning curves."""

from collections.abc import Iterable, Sequence

from kd_lightning.report import drawing
from kd_lightning.report.comparison import Comparison, differences_table
from kd_lightning.report.curves import curve, logged
from kd_lightning.report.methods import Method
from kd_lightning.report.page import Picture, Section
from kd_lightning.report.table import costs, reached
from kd_lightning.report.table import parts as parts_table


def accuracy(comparison: Comparison) -> Iterable[Section]:
    """What each method reaches, and what it costs."""
    yield Section(
        "Figures",
        "Top-1 of the test images, mean ± standard deviation over the seeds. Agreement and KL(teacher ‖ student), at "
        "T = 1, are those with the run's own teacher. ECE is the expected calibration error over 15 bins. The gap is "
        "that between the student alone and the teacher; the student alone is the best method here that trains the "
        "same student from labels, tested on the same images.\n\n"
        "Latency is the median of repeated answers, on this machine.",
        tables=[reached(comparison.rows), costs(comparison.rows)],
    )


def parts(comparison: Comparison) -> Iterable[Section]:
    """What heads, branches, peers, exits and generations reach, each for itself."""
    if any(row.parts for row in comparison.rows):
        yield Section(
            "Parts",
            "What the parts of each method reach, each for itself, and their ensembles: heads, branches, peers, exits "
            "or generations.",
            tables=[parts_table(comparison.rows)],
        )


def differences(comparison: Comparison) -> Iterable[Section]:
    """How far methods that train the same student are apart."""
    found = comparison.differences
    if found:
        names = [f"{each.first} less {each.second}" for each in found]
        points = [(100 * each.interval.difference, 100 * each.interval.low, 100 * each.interval.high) for each in found]
        picture = Picture(
            drawing.intervals(names, points, "difference in top-1, percentage points"),
            "95 % confidence intervals: " + "; ".join(sorted({each.interval.how for each in found})) + ".",
            "Differences in top-1 between methods with their confidence intervals",
        )
        yield Section(
            "Differences",
            "An interval that holds 0 says that these runs do not tell the two methods apart.",
            tables=[differences_table(found)],
            pictures=[picture],
        )


def learning_curves(methods: Sequence[Method]) -> Iterable[Section]:
    """Every term of the losses, and the figures of the validation."""
    inks = drawing.inks(method.name for method in methods)
    figures = dict.fromkeys(name for method in methods for run in method.runs for name in logged(run.run))
    pictures = []
    for figure in figures:
        lines = {
            method.name: [curve(run.run, figure) for run in method.runs if figure in logged(run.run)]
            for method in methods
        }
        drawn = {name: runs for name, runs in lines.items() if runs}
        pictures.append(Picture(drawing.curves(drawn, inks), figure, f"{figure} over the epochs"))
    if pictures:
        yield Section("Learning curves", "A line for each run.", key=inks, pictures=pictures)
