"""Beside the loop: what watches and writes while a run goes on."""

from kd_lightning.callbacks.checkpoint_io import SafeCheckpointIO
from kd_lightning.callbacks.checkpoints import Checkpoints
from kd_lightning.callbacks.compile_student import CompileStudent
from kd_lightning.callbacks.ema import StudentEMA
from kd_lightning.callbacks.metrics_file import MetricsFile
from kd_lightning.callbacks.predictions import Predictions
from kd_lightning.callbacks.preemption import Preempted, Preemption
from kd_lightning.callbacks.progress import Progress
from kd_lightning.callbacks.record import RunRecord
from kd_lightning.callbacks.run_card import RunCard

__all__ = [
    "Checkpoints",
    "CompileStudent",
    "MetricsFile",
    "Predictions",
    "Preempted",
    "Preemption",
    "Progress",
    "RunCard",
    "RunRecord",
    "SafeCheckpointIO",
    "StudentEMA",
]
