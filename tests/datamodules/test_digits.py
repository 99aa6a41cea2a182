"""The digits as scikit-learn has them, split once and for all."""

import zlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from kd_lightning.datamodules.digits import MEAN, STD, DigitsDataModule
from kd_lightning.datamodules.in_memory import ImageArrays
from kd_lightning.datamodules.views import View

CRC_OF_TEST_IMAGES = 3955566523


@pytest.fixture(scope="module")
def arrays() -> ImageArrays:
    return DigitsDataModule().read()


def test_grey_values_are_spread_over_a_byte(arrays: ImageArrays) -> None:
    assert arrays.train_images.shape == (1347, 8, 8, 1)
    assert arrays.test_images.shape == (450, 8, 8, 1)
    values = np.unique(np.concatenate([arrays.train_images, arrays.test_images]))
    assert values.tolist() == [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]


def test_split_is_a_partition_of_the_original(arrays: ImageArrays) -> None:
    pixels, labels = load_digits(return_X_y=True)
    ours = np.concatenate([arrays.train_images, arrays.test_images]).reshape(1797, 64) * (16 / 255)
    ours = np.column_stack([np.rint(ours), np.concatenate([arrays.train_labels, arrays.test_labels])]).astype(int)
    theirs = np.column_stack([pixels, labels]).astype(int)
    assert sorted(map(tuple, ours)) == sorted(map(tuple, theirs))


def test_split_is_stratified_and_does_not_change(arrays: ImageArrays) -> None:
    assert np.bincount(arrays.train_labels).tolist() == [133, 136, 133, 137, 136, 136, 136, 134, 131, 135]
    assert np.bincount(arrays.test_labels).tolist() == [45, 46, 44, 46, 45, 46, 45, 45, 43, 45]
    assert zlib.crc32(arrays.test_images.tobytes()) == CRC_OF_TEST_IMAGES


def test_mean_and_std_are_those_of_the_training_set(arrays: ImageArrays) -> None:
    assert pytest.approx((arrays.train_images / 255).mean(), abs=5e-5) == MEAN[0]
    assert pytest.approx((arrays.train_images / 255).std(), abs=5e-5) == STD[0]


def test_defaults() -> None:
    data = DigitsDataModule()
    data.setup()
    assert data.views == {"default": View(crop_padding=1, flip=False)}
    assert data.classes == tuple("0123456789")
    assert data.image_shape == (1, 8, 8)
    assert [len(data.rows(split)) for split in ("train", "val", "test")] == [1212, 135, 450]
    batch = next(iter(data.train_dataloader()))
    assert batch.image.shape == (64, 1, 8, 8)


def test_evaluation_images_are_normalised(arrays: ImageArrays) -> None:
    data = DigitsDataModule(eval_batch_size=450)
    data.setup()
    (batch,) = data.test_dataloader()
    wanted = (torch.from_numpy(arrays.test_images).permute(0, 3, 1, 2).double() / 255 - MEAN[0]) / STD[0]
    torch.testing.assert_close(batch.image.double(), wanted, rtol=0, atol=1e-6)
    assert batch.target.tolist() == arrays.test_labels.tolist()


def test_views_of_ones_own() -> None:
    assert DigitsDataModule(views={"default": View(0, False)}).views == {"default": View(0, False)}
