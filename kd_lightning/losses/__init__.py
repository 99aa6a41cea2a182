"""What is matched: distillation losses in plain torch."""

from kd_lightning.losses.activation_boundary import ActivationBoundary
from kd_lightning.losses.attention_probabilities import AttentionProbabilities
from kd_lightning.losses.attention_transfer import AttentionTransfer
from kd_lightning.losses.base import Loss, Shapes, Taps
from kd_lightning.losses.batch_norm_statistics import BatchNormStatistics
from kd_lightning.losses.catkd import CATKD
from kd_lightning.losses.correlation_congruence import CorrelationCongruence
from kd_lightning.losses.crd import CRD, InBatchCRD
from kd_lightning.losses.cross_entropy import CrossEntropy
from kd_lightning.losses.curriculum_temperature import CurriculumTemperature
from kd_lightning.losses.cwtm import CWTM
from kd_lightning.losses.data_free import Activation, ClassBalance, Discrepancy, OneHot
from kd_lightning.losses.deit_soft import ReferenceSoftTarget
from kd_lightning.losses.dino import DINO
from kd_lightning.losses.dist import DIST
from kd_lightning.losses.dkd import DKD
from kd_lightning.losses.dkpp import DKPP
from kd_lightning.losses.factor_transfer import FactorTransfer
from kd_lightning.losses.fsp import FSP
from kd_lightning.losses.hard_label import HardLabel
from kd_lightning.losses.hint import Hint
from kd_lightning.losses.multi_level import MultiLevelKD
from kd_lightning.losses.nkd import NKD
from kd_lightning.losses.nst import NST
from kd_lightning.losses.ofa import OFA
from kd_lightning.losses.overhaul import OverhaulFeature
from kd_lightning.losses.pkt import PKT
from kd_lightning.losses.review import ReviewKD
from kd_lightning.losses.rkd import RKD, RelationalAngle, RelationalDistance
from kd_lightning.losses.similarity import Similarity
from kd_lightning.losses.soft_target import SoftTarget, distillation_loss, soft_target
from kd_lightning.losses.srrl import SRRL
from kd_lightning.losses.teacher_free import TeacherFree
from kd_lightning.losses.vid import VID
from kd_lightning.losses.wsld import WSLD

__all__ = [
    "CATKD",
    "CRD",
    "CWTM",
    "DINO",
    "DIST",
    "DKD",
    "DKPP",
    "FSP",
    "NKD",
    "NST",
    "OFA",
    "PKT",
    "RKD",
    "SRRL",
    "VID",
    "WSLD",
    "Activation",
    "ActivationBoundary",
    "AttentionProbabilities",
    "AttentionTransfer",
    "BatchNormStatistics",
    "ClassBalance",
    "CorrelationCongruence",
    "CrossEntropy",
    "CurriculumTemperature",
    "Discrepancy",
    "FactorTransfer",
    "HardLabel",
    "Hint",
    "InBatchCRD",
    "Loss",
    "MultiLevelKD",
    "OneHot",
    "OverhaulFeature",
    "ReferenceSoftTarget",
    "RelationalAngle",
    "RelationalDistance",
    "ReviewKD",
    "Shapes",
    "Similarity",
    "SoftTarget",
    "Taps",
    "TeacherFree",
    "distillation_loss",
    "soft_target",
]
