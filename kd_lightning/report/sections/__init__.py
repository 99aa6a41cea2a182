"""The parts of the page: what each shows of a comparison."""

from kd_lightning.report.sections.comparing import accuracy, differences, learning_curves, parts
from kd_lightning.report.sections.deciding import against_teacher, calibration, missed
from kd_lightning.report.sections.knowing import dark_knowledge, features

__all__ = [
    "accuracy",
    "against_teacher",
    "calibration",
    "dark_knowledge",
    "differences",
    "features",
    "learning_curves",
    "missed",
    "parts",
]
