"""How the learning is arranged: one LightningModule for each training scheme."""

from kd_lightning.distillers.base import Distiller
from kd_lightning.distillers.classifier import Classifier
from kd_lightning.distillers.criteria import Criteria, Term
from kd_lightning.distillers.learning_rate import ShareCosineLR, ShareMultiStepLR
from kd_lightning.distillers.offline import OfflineDistiller
from kd_lightning.distillers.schedules import Constant, Piecewise, Ramp, Schedule, Window

__all__ = [
    "Classifier",
    "Constant",
    "Criteria",
    "Distiller",
    "OfflineDistiller",
    "Piecewise",
    "Ramp",
    "Schedule",
    "ShareCosineLR",
    "ShareMultiStepLR",
    "Term",
    "Window",
]
