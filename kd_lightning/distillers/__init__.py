"""How the learning is arranged: one LightningModule for each training scheme."""

from kd_lightning.distillers.base import Distiller
from kd_lightning.distillers.born_again import BornAgainDistiller
from kd_lightning.distillers.classifier import Classifier
from kd_lightning.distillers.codistillation import Codistillation, GroupedDDP
from kd_lightning.distillers.collaboration import DML, KDCL, ONE, Collaboration
from kd_lightning.distillers.criteria import Criteria, Term
from kd_lightning.distillers.data_free import DataFreeDistiller
from kd_lightning.distillers.deit import DeiTDistiller
from kd_lightning.distillers.fully_sharded import FullySharded
from kd_lightning.distillers.generations import generation_seed
from kd_lightning.distillers.knn import NearestNeighbours
from kd_lightning.distillers.learning_rate import ShareCosineLR, ShareMultiStepLR
from kd_lightning.distillers.offline import OfflineDistiller
from kd_lightning.distillers.online import OnlineDistiller
from kd_lightning.distillers.peers import Peer
from kd_lightning.distillers.quiet_ddp import QuietDDP
from kd_lightning.distillers.schedules import Complement, Constant, Piecewise, Ramp, Schedule, Window

__all__ = [
    "DML",
    "KDCL",
    "ONE",
    "BornAgainDistiller",
    "Classifier",
    "Codistillation",
    "Collaboration",
    "Complement",
    "Constant",
    "Criteria",
    "DataFreeDistiller",
    "DeiTDistiller",
    "Distiller",
    "FullySharded",
    "GroupedDDP",
    "NearestNeighbours",
    "OfflineDistiller",
    "OnlineDistiller",
    "Peer",
    "Piecewise",
    "QuietDDP",
    "Ramp",
    "Schedule",
    "ShareCosineLR",
    "ShareMultiStepLR",
    "Term",
    "Window",
    "generation_seed",
]
