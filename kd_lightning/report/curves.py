"""Learning curves as a picture, from the runs' metrics files."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from kd_lightning.run_folder import RunFolder


def curve(folder: RunFolder, figure: str) -> tuple[list[int], list[float]]:
    """Epochs and values of one figure of a run, where it was logged."""
    with folder.metrics.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get(figure)]
    return [int(row["epoch"]) for row in rows], [float(row[figure]) for row in rows]


def draw_curves(groups: Mapping[str, Sequence[RunFolder]], path: Path, figures: Sequence[str]) -> None:
    """Draw a panel for each figure, a colour for each group, a line for each run.

    Args:
        groups: Name -> runs that differ in their seed.
        path: Of the picture (PNG).
        figures: Names as logged, for instance ``val/top1``.
    """
    picture = Figure(figsize=(5.5 * len(figures), 4), layout="constrained")
    panels = picture.subplots(1, len(figures), squeeze=False)[0]
    for panel, figure in zip(panels, figures, strict=True):
        for number, (name, folders) in enumerate(groups.items()):
            for label, folder in zip([name, *[None] * len(folders)], folders, strict=False):
                panel.plot(*curve(folder, figure), color=f"C{number}", label=label, alpha=0.8)
        panel.set_xlabel("epoch")
        panel.set_ylabel(figure)
        panel.grid(alpha=0.3)
    panels[0].legend()
    picture.savefig(path, dpi=120)
