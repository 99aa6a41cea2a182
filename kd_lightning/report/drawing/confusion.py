"""Teacher against student: which class one says where the other says another."""

from collections.abc import Sequence

from torch import Tensor

from kd_lightning.report.drawing.heatmap import Colours, heatmap, off_diagonal


def confusion(counts: Tensor, classes: Sequence[str]) -> str:
    """Images by the class that the teacher (rows) and the student (columns) give them, ``[C, C]``.

    Where both agree the cell is empty: nearly all images are there, and would leave the others no colours.
    """
    apart = off_diagonal(counts)
    most = max(float(apart.nan_to_num().max()), 1.0)
    look = Colours("cividis", most, "images", gamma=0.5, cells=".0f")
    return heatmap(apart, classes, classes, ("teacher", "student"), look)
