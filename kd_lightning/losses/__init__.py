"""What is matched: distillation losses in plain torch."""

from kd_lightning.losses.base import Loss, Shapes, Taps
from kd_lightning.losses.cross_entropy import CrossEntropy
from kd_lightning.losses.hard_label import HardLabel
from kd_lightning.losses.soft_target import SoftTarget, distillation_loss, soft_target

__all__ = ["CrossEntropy", "HardLabel", "Loss", "Shapes", "SoftTarget", "Taps", "distillation_loss", "soft_target"]
