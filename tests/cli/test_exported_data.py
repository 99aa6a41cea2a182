from pathlib import Path

import pytest
import torch

from kd_lightning.cli.exported_data import name_of, preprocessing_of, training_images
from kd_lightning.datamodules import CIFAR100DataModule, DigitsDataModule, ImageFolderDataModule, NoTrainingImages
from kd_lightning.export import Preprocessing
from kd_lightning.models import Views


def test_the_name_tells_no_path() -> None:
    assert name_of(DigitsDataModule()) == "digits"
    assert name_of(CIFAR100DataModule(root="/home/me/data")) == "cifar100"
    assert name_of(NoTrainingImages(DigitsDataModule(), steps_per_epoch=2)) == "digits"


def test_preprocessing_is_as_far_as_the_data_says_it(tmp_path: Path) -> None:
    folder = ImageFolderDataModule(tmp_path, image_size=64, crop_pct=0.9, interpolation="bicubic")
    views = Views((3, 64, 64), folder.mean, folder.std)
    known = Preprocessing((3, 64, 64), folder.mean, folder.std)
    assert preprocessing_of(folder, views) == known._replace(crop_pct=0.9, crop_mode="center", interpolation="bicubic")
    assert preprocessing_of(CIFAR100DataModule(), views) == known._replace(crop_pct=1.0)
    assert preprocessing_of(None, views) == known


def test_training_images_of_all_of_the_set_are_shown_as_in_the_test() -> None:
    data = DigitsDataModule(global_batch_size=100, val_fraction=0.0)
    data.setup()
    images = torch.cat(list(training_images(data, 150)))
    assert images.shape == (150, 1, 8, 8)
    store = data.store("train", torch.device("cpu"))
    for image, row in ((images[0, 0], 0), (images[-1, 0], len(store.target) - 1)):
        torch.testing.assert_close(image, (store.packed[row].float() / 255 - data.mean[0]) / data.std[0])
    assert len(torch.cat(list(training_images(data, 10**6)))) == len(store.target)


def test_where_there_are_no_training_images() -> None:
    with pytest.raises(ValueError, match="needs a datamodule of this package, got int: take dynamic"):
        next(training_images(3, 1))
    data = NoTrainingImages(DigitsDataModule(val_fraction=0.0), steps_per_epoch=2)
    data.setup("test")
    with pytest.raises(ValueError, match="needs training images, NoTrainingImages has none: take dynamic"):
        next(training_images(data, 1))
