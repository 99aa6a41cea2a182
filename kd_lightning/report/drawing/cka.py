"""How alike the features of student and teacher are, stage by stage."""

from collections.abc import Sequence

from torch import Tensor

from kd_lightning.report.drawing.heatmap import Colours, heatmap


def cka(matrix: Tensor, student: Sequence[str], teacher: Sequence[str]) -> str:
    """Linear CKA in [0, 1] of student stages (rows) and teacher stages (columns), all pictures on one scale."""
    return heatmap(matrix, student, teacher, ("student", "teacher"), Colours("viridis", 1, "CKA"))
