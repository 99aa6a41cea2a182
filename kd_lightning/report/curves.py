"""Learning curves, read from the runs' metrics files."""

import csv

from kd_lightning.run_folder import RunFolder

NO_FIGURES = {"step", "epoch"}


def _rows(folder: RunFolder) -> list[dict[str, str]]:
    with folder.metrics.open(newline="") as file:
        return list(csv.DictReader(file))


def logged(folder: RunFolder) -> list[str]:
    """The figures that a run logged, as ``train/kd`` and ``val/top1``; none where it has no metrics file."""
    if not folder.metrics.is_file():
        return []
    with folder.metrics.open(newline="") as file:
        return [name for name in next(csv.reader(file), []) if name not in NO_FIGURES]


def curve(folder: RunFolder, figure: str) -> tuple[list[int], list[float]]:
    """Epochs and values of one figure of a run, where it was logged."""
    rows = [row for row in _rows(folder) if row.get(figure)]
    return [int(row["epoch"]) for row in rows], [float(row[figure]) for row in rows]
