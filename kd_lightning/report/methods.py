"""Methods: runs that differ only in their seed, what they reach on average, and what that costs."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any, NamedTuple

from torch import Tensor

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
        parts: Head, branch, peer, exit or generation -> ``top1``, ``loss`` and ``ece`` of it.
        gap_recovered: (student - student alone) / (teacher - student alone) of the means. The student alone is the best
            method that trains the same student from labels and was tested on the same images; None where there is none,
            or the teacher is not ahead of it.
        compression: Parameters of the teacher over those of the student; None without a teacher.
        speedup: Latency of the teacher over that of the student, by device and batch.
    """

    method: Method
    figures: Mapping[str, Statistic]
    parts: Mapping[str, Mapping[str, Statistic]]
    gap_recovered: float | None
    compression: float | None
    speedup: Mapping[str, float]


def measured(run: Examined, logits: Tensor, teacher: Tensor | None = None) -> dict[str, float]:
    """The figures of logits ``[M, C]`` for the test images of a run."""
    evaluation = Evaluation(len(run.classes), teacher=teacher is not None, full=True)
    evaluation.update(logits, run.target, teacher)
    return evaluation.compute()


def figures_of(run: Examined) -> dict[str, float]:
    """The figures of one run; see `Row`."""
    figures = measured(run, run.student, run.teacher)
    return figures if run.best_top1 is None else {**figures, "best_top1": run.best_top1}


def parts_of(method: Method) -> dict[str, dict[str, Statistic]]:
    """The figures of each part over the seeds; see `Row`."""
    names = dict.fromkeys(name for run in method.runs for name in run.parts)
    return {
        name: over_seeds([measured(run, run.parts[name]) for run in method.runs if name in run.parts]) for name in names
    }


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


def tested_on(method: Method) -> frozenset[bytes]:
    """What a method was tested on, by the labels of the test images of its runs."""
    return frozenset(run.target.numpy().tobytes() for run in method.runs)


def trains_alone(config: Mapping[str, Any]) -> bool:
    """Whether a configuration trains its student from labels alone."""
    return str(config["model"]["class_path"]).rpartition(".")[2] == "Classifier"


def gap_recovered(student: float, alone: float, teacher: float) -> float | None:
    """(student - alone) / (teacher - alone); None where the teacher is not ahead."""
    return (student - alone) / (teacher - alone) if teacher > alone else None


def rows(methods: Sequence[Method]) -> list[Row]:
    """The comparison of methods, in their order."""
    figures = {method.name: over_seeds([figures_of(run) for run in method.runs]) for method in methods}
    alone: dict[object, float] = {}
    for method in methods:
        if trains_alone(method.runs[0].config):
            reached = figures[method.name]["top1"].mean
            alone[_task(method)] = max(reached, alone.get(_task(method), reached))
    return [_row(method, figures[method.name], alone.get(_task(method))) for method in methods]


def _task(method: Method) -> object:
    return str(student_of(method.runs[0].config)), tested_on(method)


def _row(method: Method, figures: Mapping[str, Statistic], alone: float | None) -> Row:
    student, teacher = method.runs[0].student_profile, method.runs[0].teacher_profile
    recovered = None
    if alone is not None and "teacher_top1" in figures:
        recovered = gap_recovered(figures["top1"].mean, alone, figures["teacher_top1"].mean)
    return Row(
        method,
        figures,
        parts_of(method),
        recovered,
        None if teacher is None else teacher.params / student.params,
        {} if teacher is None else {name: teacher.latency[name] / time for name, time in student.latency.items()},
    )


def _plain(figures: Mapping[str, Statistic]) -> dict[str, object]:
    return {
        name: {"mean": figure.mean, "std": figure.std, "values": list(figure.values)}
        for name, figure in figures.items()
    }


def as_json(row: Row) -> dict[str, object]:
    """A row as plain numbers."""
    first = row.method.runs[0]
    return {
        "runs": [str(run.run.path) for run in row.method.runs],
        "figures": _plain(row.figures),
        "parts": {name: _plain(figures) for name, figures in row.parts.items()},
        "gap_recovered": row.gap_recovered,
        "compression": row.compression,
        "speedup": dict(row.speedup),
        "student": first.student_profile._asdict(),
        "teacher": None if first.teacher_profile is None else first.teacher_profile._asdict(),
    }
