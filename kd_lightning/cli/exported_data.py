"""What an export says of a run's data, and what it reads of it."""

from collections.abc import Iterator
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor

from kd_lightning.batch import Batch, as_batch
from kd_lightning.datamodules import ImageDataModule, ImageFolderDataModule
from kd_lightning.datamodules.borrowed import BorrowedDataModule
from kd_lightning.datamodules.in_memory import InMemoryDataModule
from kd_lightning.datamodules.plan import EpochPlan
from kd_lightning.export import Preprocessing
from kd_lightning.models import Views


def shown(data: object) -> object:
    """The data module whose test set is shown."""
    return data.data if isinstance(data, BorrowedDataModule) else data


def name_of(data: object) -> str:
    """The data set's name, from the class of its data module: no path of a user's data is told."""
    return type(shown(data)).__name__.removesuffix("DataModule").lower()


def preprocessing_of(data: object, views: Views) -> Preprocessing:
    """What was made of the test images before the network saw them, as far as the data module says it."""
    known, images = Preprocessing(views.image_shape, views.mean, views.std), shown(data)
    if isinstance(images, InMemoryDataModule):
        return known._replace(crop_pct=1.0)
    if isinstance(images, ImageFolderDataModule):
        stated = images.wanted
        return known._replace(crop_pct=stated.crop_pct, crop_mode=stated.crop_mode, interpolation=stated.interpolation)
    return known


def test_images(data: object) -> int | None:
    """How many images the test set has; None where the data module does not say it."""
    images = shown(data)
    return len(images.rows("test")) if isinstance(images, ImageDataModule) else None


def validates_on_test(data: object) -> bool:
    """Whether what is chosen by validation is chosen on the test set."""
    images = shown(data)
    return isinstance(images, ImageDataModule) and images.validate_on_test


def test_batches(trainer: pl.Trainer) -> Iterator[Batch]:
    """The whole test set, as the test shows it."""
    for batch in cast(Any, trainer).datamodule.test_dataloader():
        yield as_batch(trainer.strategy.batch_to_device(batch, dataloader_idx=0))


def training_images(data: object, count: int) -> Iterator[Tensor]:
    """So many training images, evenly spread over the training set, as the test would show them, in batches.

    Raises:
        ValueError: if the data module does not offer them.
    """
    if not isinstance(data, ImageDataModule):
        raise ValueError(f"--int8 static needs a datamodule of this package, got {type(data).__name__}: take dynamic")
    rows = data.training_rows()
    spread = torch.linspace(0, len(rows) - 1, min(count, len(rows))).round().long()
    plan = EpochPlan(rows[spread], data.eval_batch_size, seed=0, train=False)
    for batch in data.loader("train", plan, torch.device("cpu")):
        if "default" not in batch.images:
            raise ValueError(f"--int8 static needs training images, {type(data).__name__} has none: take dynamic")
        yield batch.image
