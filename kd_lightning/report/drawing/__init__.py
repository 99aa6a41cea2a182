"""Pictures of a report as inline SVG: one kind a file, from figures that are already computed."""

from kd_lightning.report.drawing.bars import bars
from kd_lightning.report.drawing.cka import cka
from kd_lightning.report.drawing.confusion import confusion
from kd_lightning.report.drawing.curves import curves
from kd_lightning.report.drawing.inks import Ink, inks
from kd_lightning.report.drawing.intervals import intervals
from kd_lightning.report.drawing.reliability import reliability
from kd_lightning.report.drawing.similarity import similarity
from kd_lightning.report.drawing.soft_targets import soft_targets

__all__ = [
    "Ink",
    "bars",
    "cka",
    "confusion",
    "curves",
    "inks",
    "intervals",
    "reliability",
    "similarity",
    "soft_targets",
]
