"""Networks for 32x32 images of the CIFAR distillation protocol, in timm's registry under ``cifar_<name>``.

Importing this package registers them: ``timm.create_model("cifar_resnet20", num_classes=100)``. Structure, stage taps
and initialisation are those of the protocol of Tian et al., "Contrastive Representation Distillation", ICLR 2020, which
Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, and others use too.
"""

from kd_lightning.models.cifar import mobilenetv2, resnet, resnet50, shufflenetv1, shufflenetv2, vgg, wide_resnet
from kd_lightning.models.cifar.network import CifarNetwork, StageInfo, StemInfo

__all__ = [
    "CifarNetwork",
    "StageInfo",
    "StemInfo",
    "mobilenetv2",
    "resnet",
    "resnet50",
    "shufflenetv1",
    "shufflenetv2",
    "vgg",
    "wide_resnet",
]
