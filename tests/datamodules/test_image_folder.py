"""The data module of image folders: views, splits, faults, and what a Trainer sees of it."""

import multiprocessing
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from kd_lightning.batch import Batch
from kd_lightning.datamodules import bad_images as scanner
from kd_lightning.datamodules.image_folder import ImageFolderDataModule
from kd_lightning.datamodules.mixing import Mixing


def module(root: Path, *, batch: int = 3, **arguments: Any) -> ImageFolderDataModule:
    """Set up, with small images and without workers."""
    data = ImageFolderDataModule(root, batch, **{"image_size": 16, "workers": 0, "seed": 1} | arguments)
    data.setup("fit")
    return data


def indices(batches: list[Batch]) -> list[int]:
    return [index for batch in batches for index in batch.index.tolist()]


def assert_timms_evaluation(data: ImageFolderDataModule, size: int, crop_pct: float, interpolation: str) -> None:
    """The test batches equal timm's own pipeline on the same files."""
    transform = create_transform(size, crop_pct=crop_pct, interpolation=interpolation)
    for batch in data.test_dataloader():
        assert batch.index is not None
        for image, row in zip(batch.image, batch.index.tolist(), strict=True):
            with Image.open(data.files("test").path(row)) as file:
                assert torch.allclose(image, transform(file.convert("RGB")), atol=2e-6)


@pytest.mark.parametrize(("crop_pct", "interpolation"), [(0.875, "bilinear"), (1.0, "bicubic")])
def test_evaluation_is_timms(image_root: Path, crop_pct: float, interpolation: Any) -> None:
    data = module(image_root, crop_pct=crop_pct, interpolation=interpolation)
    assert_timms_evaluation(data, 16, crop_pct, interpolation)


def test_evaluation_of_real_images_is_timms(imagenet_sample_root: Path) -> None:
    data = ImageFolderDataModule(imagenet_sample_root / "imagenet_sample", 25, workers=0)
    data.setup("test")
    assert data.num_classes == len(data.rows("test")) == 100
    assert_timms_evaluation(data, 224, 0.875, "bilinear")


def test_what_is_known_after_setup(image_root: Path) -> None:
    data = module(image_root, model="dm_nfnet_f0.dm_in1k", image_size=None, std=(0.2, 0.3, 0.4))
    assert data.classes == ("a", "b", "c")
    assert data.num_classes == 3
    assert data.image_shape == (3, 192, 192)
    assert data.mean == (0.485, 0.456, 0.406)
    assert data.std == (0.2, 0.3, 0.4)
    assert next(iter(data.test_dataloader())).image.shape == (3, 3, 192, 192)


def test_before_setup_there_are_no_classes(image_root: Path) -> None:
    with pytest.raises(RuntimeError, match="call setup first"):
        _ = ImageFolderDataModule(image_root).classes


def test_folder_names_can_be_chosen(image_root: Path) -> None:
    (image_root / "train").rename(image_root / "one")
    (image_root / "val").rename(image_root / "two")
    data = module(image_root, train_dir="one", test_dir="two")
    assert (len(data.rows("train")), len(data.rows("test"))) == (9, 5)


def test_held_out_samples_keep_their_rows_and_are_not_augmented(image_root: Path) -> None:
    whole, split = module(image_root), module(image_root, val_fraction=1 / 3)
    train, val = indices(list(split.train_dataloader())), split.val_dataloader()
    assert isinstance(val, type(split.train_dataloader()))
    held = list(val)
    assert sorted(train + indices(held)) == sorted(indices(list(whole.train_dataloader()))) == list(range(9))
    assert len(indices(held)) == 3
    for batch in held:
        assert batch.index is not None
        assert batch.target.tolist() == whole.files("train").labels[batch.index].tolist()
        with Image.open(whole.files("train").path(int(batch.index[0]))) as file:
            assert torch.allclose(batch.image[0], create_transform(16)(file.convert("RGB")), atol=2e-6)


def test_validation_on_the_test_set_or_none(image_root: Path) -> None:
    loader = module(image_root, validate_on_test=True).val_dataloader()
    assert isinstance(loader, type(module(image_root).test_dataloader()))
    assert indices(list(loader)) == list(range(5))
    assert module(image_root).val_dataloader() == []


def test_training_is_erased_and_mixed_and_evaluation_is_not(image_root: Path) -> None:
    data = module(image_root, random_erasing=1.0, random_erasing_mode="const", mixing=Mixing(cutmix_alpha=1.0))
    train, test = next(iter(data.train_dataloader())), next(iter(data.test_dataloader()))
    assert train.target.shape == (3, 3)
    assert bool((train.image == 0).all(1).any())  # the mean colour in all channels; no pixel of a byte image has it
    assert test.target.dtype == torch.int64
    assert not bool((test.image == 0).all(1).any())


def test_repeats_reach_the_plan(image_root: Path) -> None:
    data = module(image_root, batch=4, repeats=2, drop_last=True)
    loader = data.train_dataloader()
    loader.plan.set_epoch(3)
    for batch in loader:
        assert batch.number.tolist() == [6, 7, 6, 7]
        assert batch.index[0] == batch.index[1]


def test_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no image folder at {re.escape(str(tmp_path / 'nowhere/train'))}"):
        module(tmp_path / "nowhere")


def test_difference_of_classes_is_named(image_root: Path) -> None:
    (image_root / "train/b").rename(image_root / "train/x")
    with pytest.raises(ValueError, match=r"only in .*train: x; only in .*val: b"):
        module(image_root)


def spoil(path: Path) -> None:
    path.write_bytes(b"<html>")


@pytest.mark.parametrize("policy", [None, "augmix-m3-w3"])
def test_views_do_not_depend_on_the_global_generators(image_root: Path, policy: str | None) -> None:
    # augmix draws from numpy too
    first, second = module(image_root, auto_augment=policy), module(image_root, auto_augment=policy)
    batches = list(first.train_dataloader())
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    again = list(second.train_dataloader())
    assert all(torch.equal(a.image, b.image) for a, b in zip(batches, again, strict=True))


def test_bad_file_stops_by_default(image_root: Path) -> None:
    spoil(image_root / "val/c/0.jpg")
    data = module(image_root)
    with pytest.raises(ValueError, match=r"cannot decode image .*val/c/0\.jpg"):
        list(data.test_dataloader())
    assert data.skipped == 0


def test_bad_files_are_left_out_on_request_and_rows_stay(image_root: Path) -> None:
    for name in ("train/b/1.jpg", "val/c/0.jpg"):
        spoil(image_root / name)
    data = module(image_root, on_bad_image="skip", batch=2)
    assert data.skipped == 2
    assert indices(list(data.train_dataloader())) != sorted(indices(list(data.train_dataloader())))
    assert sorted(indices(list(data.train_dataloader()))) == [0, 1, 2, 4, 5, 6, 7, 8]
    assert indices(list(data.test_dataloader())) == [0, 1, 2, 4]
    assert [batch.target.tolist() for batch in data.test_dataloader()] == [[0, 0], [1, 2]]


def test_left_out_files_do_not_move_the_validation_split(image_root: Path) -> None:
    before = module(image_root, val_fraction=0.4).rows("val").tolist()
    spoil(module(image_root).files("train").path(before[1]))
    after = module(image_root, val_fraction=0.4, on_bad_image="skip")
    assert after.rows("val").tolist() == before[:1] + before[2:]
    assert sorted(after.rows("train").tolist() + before) == list(range(9))


def test_class_of_bad_files_is_named(image_root: Path) -> None:
    spoil(image_root / "val/b/0.jpg")
    with pytest.raises(ValueError, match=r"class folder without good images: .*val/b$"):
        module(image_root, on_bad_image="skip")


def test_other_ranks_take_rank_zeros_verdict(image_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(files: object) -> None:
        raise AssertionError("decoded on another rank")

    monkeypatch.setattr("kd_lightning.datamodules.image_folder.bad_images", refuse)
    verdicts = iter([{2: "rank zero could not decode it"}, {}])
    data = ImageFolderDataModule(image_root, 2, on_bad_image="skip")
    strategy = SimpleNamespace(broadcast=lambda own: next(verdicts))
    data.trainer = SimpleNamespace(is_global_zero=False, strategy=strategy)
    data.setup("fit")
    assert data.rows("train").tolist() == [0, 1, 3, 4, 5, 6, 7, 8]
    assert data.skipped == 1


def test_setup_is_done_once(image_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = module(image_root, on_bad_image="skip")
    monkeypatch.setattr(scanner, "fingerprint", None)
    data.setup("test")
    assert len(data.rows("test")) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": -1}, "workers must be >= 0, got -1"),
        ({"random_erasing": 1.1}, r"random_erasing must be a probability in \[0, 1\], got 1.1"),
        ({"on_bad_image": "ignore"}, "on_bad_image must be 'error' or 'skip', got 'ignore'"),
        ({"val_fraction": 1.0}, r"val_fraction must be in \[0, 1\), got 1.0"),
        ({"scale": (0.0, 1.0)}, r"scale must be an ascending range in \(0, 1\], got \[0.0, 1.0\]"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageFolderDataModule("nowhere", **arguments)


def test_arguments_can_be_given_on_the_command_line() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ImageFolderDataModule, "data")
    given = ["--data.root=x", "--data.scale=[0.3,1]", "--data.mixing.mixup_alpha=0.8", "--data.interpolation=bicubic"]
    data = parser.instantiate(parser.parse_args(given)).data
    assert data.mixing == Mixing(mixup_alpha=0.8)
    assert data.wanted.interpolation == "bicubic"
    assert data.train_transform.transforms[0].scale == (0.3, 1.0)


class Recorder(pl.LightningModule):
    """Learns nothing and keeps the names that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, int]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert batch.index is not None
        assert batch.number is not None
        self.seen += zip(batch.index.tolist(), batch.number.tolist(), strict=True)
        return self.weight * batch.image.mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert batch.target.dtype == torch.int64

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_trainer_sees_each_sample_once_per_epoch_and_no_worker_stays(image_root: Path, tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    data = ImageFolderDataModule(image_root, 3, image_size=16, workers=1, seed=1, validate_on_test=True)
    model = Recorder()
    pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    ).fit(model, data)
    assert sorted(model.seen) == [(row, epoch) for row in range(9) for epoch in range(2)]
    assert set(multiprocessing.active_children()) == before
