"""A finished run's network in a file that others read without this package, and its model card."""

from kd_lightning.export.agreement import Agreement, Answer, answered, compare, top1
from kd_lightning.export.card import Checkpoint, Facts, card
from kd_lightning.export.choosing import Origin, choose
from kd_lightning.export.folder import CARD, CLASSES, CONFIG, PREPROCESSING, check_folder, filling, push
from kd_lightning.export.formats import FORMATS, Format, onnx_answer, require, write
from kd_lightning.export.int8 import Int8, Mode, to_int8
from kd_lightning.export.part import Part, recipes
from kd_lightning.export.preprocessing import Preprocessing, is_timms, timm_config
from kd_lightning.export.taught_by import networks

__all__ = [
    "CARD",
    "CLASSES",
    "CONFIG",
    "FORMATS",
    "PREPROCESSING",
    "Agreement",
    "Answer",
    "Checkpoint",
    "Facts",
    "Format",
    "Int8",
    "Mode",
    "Origin",
    "Part",
    "Preprocessing",
    "answered",
    "card",
    "check_folder",
    "choose",
    "compare",
    "filling",
    "is_timms",
    "networks",
    "onnx_answer",
    "push",
    "recipes",
    "require",
    "timm_config",
    "to_int8",
    "top1",
    "write",
]
