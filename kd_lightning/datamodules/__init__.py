"""On which views: LightningDataModules whose samples are named, not drawn."""

from kd_lightning.datamodules.base import ImageDataModule
from kd_lightning.datamodules.cifar import CIFAR10DataModule, CIFAR100DataModule
from kd_lightning.datamodules.digits import DigitsDataModule
from kd_lightning.datamodules.image_folder import ImageFolderDataModule
from kd_lightning.datamodules.imagenet import ImageNetDataModule
from kd_lightning.datamodules.mixing import Mixing
from kd_lightning.datamodules.no_training_images import NoTrainingImages
from kd_lightning.datamodules.shards import ShardsDataModule
from kd_lightning.datamodules.transfer import TransferSet
from kd_lightning.datamodules.views import View

__all__ = [
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "DigitsDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "Mixing",
    "NoTrainingImages",
    "ShardsDataModule",
    "TransferSet",
    "View",
]
