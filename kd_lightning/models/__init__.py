"""Who learns, and from whom: networks as recipes, their weights and taps, and teachers."""

from kd_lightning.models.network import Network, NetworkLike
from kd_lightning.models.simkd import SimKDStudent
from kd_lightning.models.tap_plan import TapPlan
from kd_lightning.models.teacher import FrozenTeacher, Outputs, Teacher, TeacherCheck, Views
from kd_lightning.models.weights import load_weights, save_weights

__all__ = [
    "FrozenTeacher",
    "Network",
    "NetworkLike",
    "Outputs",
    "SimKDStudent",
    "TapPlan",
    "Teacher",
    "TeacherCheck",
    "Views",
    "load_weights",
    "save_weights",
]
