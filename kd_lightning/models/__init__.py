"""Who learns, and from whom: networks as recipes, their weights and taps, and teachers."""

from kd_lightning.models.branched import BranchedNetwork
from kd_lightning.models.ensemble import EnsembleTeacher
from kd_lightning.models.exits import MultiExitNetwork
from kd_lightning.models.filled_later import filled_later
from kd_lightning.models.frozen import FrozenTeacher
from kd_lightning.models.input_adapter import Views
from kd_lightning.models.moving_average import MovingAverageTeacher
from kd_lightning.models.named_views import NamedViews
from kd_lightning.models.network import Network, NetworkLike
from kd_lightning.models.peer_weights import peer_weights
from kd_lightning.models.projected import ProjectedStudent
from kd_lightning.models.simkd import SimKDStudent
from kd_lightning.models.stored_outputs import StoredOutputs
from kd_lightning.models.tap_plan import TapPlan
from kd_lightning.models.teacher import Outputs, Teacher, TeacherCheck
from kd_lightning.models.weights import load_weights, save_weights

__all__ = [
    "BranchedNetwork",
    "EnsembleTeacher",
    "FrozenTeacher",
    "MovingAverageTeacher",
    "MultiExitNetwork",
    "NamedViews",
    "Network",
    "NetworkLike",
    "Outputs",
    "ProjectedStudent",
    "SimKDStudent",
    "StoredOutputs",
    "TapPlan",
    "Teacher",
    "TeacherCheck",
    "Views",
    "filled_later",
    "load_weights",
    "peer_weights",
    "save_weights",
]
