"""Methods: runs that differ only in their seed, what they reach on average, and what that costs."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any, NamedTuple

from kd_lightning.distillers.metrics import Evaluation
from kd_lightning.report.examined import Examined


class Method(NamedTuple):
    """Runs that differ only in their seed."""

    name: str
    runs: Sequence[Examined]


class Statistic(NamedTuple):
    """Values of a figure, one for each seed that has it, at least one."""

    values: Sequence[float]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return mean(self.values)

    @property
    def std(self) -> float:
        """Sample standard deviation over the seeds, 0 for a single one."""
        return stdev(self.values) if len(self.values) > 1 else 0.0


class Row(NamedTuple):
    """A method in the comparison.

    Attributes:
        method: Whose row it is.
        figures: ``top1`` of the examined checkpoint, ``best_top1`` of the best one, ``loss``, ``ece``, and with a
            teacher ``teacher_top1``, ``agreement``, ``teacher_kl``; see `Evaluation`.
        gap_recovered: (student - student alone) / (teacher - student alone) of the means; None where no run of the
            student alone is among the methods, or the teacher is not ahead of it.
        compression: Parameters of the teacher over those of the student; None without a teacher.
        speedup: Latency of the teacher over that of the student, by device and batch.
    """

    method: Method
    figures: Mapping[str, Statistic]
    gap_recovered: float | None
    compression: float | None
    speedup: Mapping[str, float]


def figures_of(run: Examined) -> dict[str, float]:
    """The figures of one run; see `Row`."""
    evaluation = Evaluation(len(run.classes), teacher=run.teacher is not None, full=True)
    evaluation.update(run.student, run.target, run.teacher)
    figures = evaluation.compute()
    return figures if run.best_top1 is None else {**figures, "best_top1": run.best_top1}


def over_seeds(runs: Sequence[Mapping[str, float]]) -> dict[str, Statistic]:
    """Each figure's values over the runs that have it."""
    names = dict.fromkeys(name for figures in runs for name in figures)
    return {name: Statistic([figures[name] for figures in runs if name in figures]) for name in names}


def student_of(config: Mapping[str, Any]) -> object:
    """What says which student, or which peers, a configuration trains, but not from which weights they start."""
    stated = config["model"]["init_args"]
    peers = {name: peer["network"] for name, peer in (stated.get("peers") or {}).items()}
    networks = peers or {"student": stated.get("student") or {}}
    return {name: (network.get("name"), network.get("kwargs") or {}) for name, network in networks.items()}


def trains_alone(config: Mapping[str, Any]) -> bool:
    """Whether a configuration trains its student from labels alone."""
    return str(config["model"]["class_path"]).rpartition(".")[2] == "Classifier"


def gap_recovered(student: float, alone: float, teacher: float) -> float | None:
    """(student - alone) / (teacher - alone); None where the teacher is not ahead."""
    return (student - alone) / (teacher - alone) if teacher > alone else None


def rows(methods: Sequence[Method]) -> list[Row]:
    """The comparison of methods, in their order."""
    figures = {method.name: over_seeds([figures_of(run) for run in method.runs]) for method in methods}
    alone = {
        str(student_of(method.runs[0].config)): figures[method.name]["top1"].mean
        for method in methods
        if trains_alone(method.runs[0].config)
    }
    return [_row(method, figures[method.name], alone.get(str(student_of(method.runs[0].config)))) for method in methods]


def _row(method: Method, figures: Mapping[str, Statistic], alone: float | None) -> Row:
    student, teacher = method.runs[0].student_profile, method.runs[0].teacher_profile
    recovered = None
    if alone is not None and "teacher_top1" in figures:
        recovered = gap_recovered(figures["top1"].mean, alone, figures["teacher_top1"].mean)
    return Row(
        method,
        figures,
        recovered,
        None if teacher is None else teacher.params / student.params,
        {} if teacher is None else {name: teacher.latency[name] / time for name, time in student.latency.items()},
    )


def as_json(row: Row) -> dict[str, object]:
    """A row as plain numbers."""
    first = row.method.runs[0]
    return {
        "runs": [str(run.run.path) for run in row.method.runs],
        "figures": {
            name: {"mean": figure.mean, "std": figure.std, "values": list(figure.values)}
            for name, figure in row.figures.items()
        },
        "gap_recovered": row.gap_recovered,
        "compression": row.compression,
        "speedup": dict(row.speedup),
        "student": first.student_profile._asdict(),
        "teacher": None if first.teacher_profile is None else first.teacher_profile._asdict(),
    }
