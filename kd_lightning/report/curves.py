"""Learning curves, read from the runs' metrics files."""

import csv
from collections import Counter

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


def curve(folder: RunFolder, figure: str) -> tuple[list[float], list[float]]:
    """Places in epochs, and values, of one figure of a run, where it was logged.

    Of n values of an epoch the k-th is at the epoch + k / n: at 1 the first epoch is over.
    """
    rows = [row for row in _rows(folder) if row.get(figure)]
    epochs = [int(row["epoch"]) for row in rows]
    many, so_far = Counter(epochs), Counter[int]()
    places = []
    for epoch in epochs:
        so_far[epoch] += 1
        places.append(epoch + so_far[epoch] / many[epoch])
    return places, [float(row[figure]) for row in rows]
