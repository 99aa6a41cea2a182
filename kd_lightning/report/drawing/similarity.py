"""Which classes the teacher takes for alike."""

from collections.abc import Sequence

from torch import Tensor

from kd_lightning.report.drawing.heatmap import Colours, heatmap, off_diagonal


def similarity(matrix: Tensor, classes: Sequence[str], order: Sequence[int], label: str) -> str:
    """What images of a class (rows) have of each class (columns), in the order of a clustering; without the diagonal.

    Args:
        matrix: Similarities ``[C, C]``; nan leaves a cell empty.
        classes: Names, in the order of the matrix.
        order: A permutation of the classes that brings similar ones together.
        label: What the similarity is.
    """
    apart = off_diagonal(matrix[order][:, order])
    most = float(apart.nan_to_num().max()) or 1.0
    names = [classes[number] for number in order]
    return heatmap(apart, names, names, ("images of", ""), Colours("viridis", most, label))
