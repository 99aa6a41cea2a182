"""CIFAR from either layout, with tiny stand-ins, and from the real images where they are to be had."""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from kd_lightning.datamodules import cifar
from kd_lightning.datamodules.cifar import CIFAR10DataModule, CIFAR100DataModule, download_cifar
from kd_lightning.datamodules.mixing import Mixing
from kd_lightning.datamodules.rand_augment import RandAugment
from kd_lightning.datamodules.views import View

MODULES = {"cifar10": (CIFAR10DataModule, 10), "cifar100": (CIFAR100DataModule, 100)}
PIXELS = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)


def class_names(count: int) -> list[str]:
    return [f"class{label:02}" for label in range(count)]


def write_folders(root: Path, name: str, count: int) -> None:
    """An image for each class in each part."""
    for part, pixels in (("train", PIXELS[:count]), ("test", PIXELS[100 : 100 + count])):
        for label, image in zip(class_names(count), pixels, strict=True):
            (root / name / part / label).mkdir(parents=True)
            Image.fromarray(image).save(root / name / part / label / "000.png")


def write_pickle(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(content))


def write_archive(root: Path, archive: type[CIFAR10], count: int, patch: pytest.MonkeyPatch) -> None:
    """An image for each class in each part as in torchvision's archive, classes from last to first, with any sums."""
    patch.setattr(archive, "train_list", [[file, None] for file, _ in archive.train_list])
    patch.setattr(archive, "test_list", [[file, None] for file, _ in archive.test_list])
    patch.setattr(archive, "meta", {**archive.meta, "md5": None})
    folder, key = root / archive.base_folder, "labels" if count == 10 else "fine_labels"
    for files, pixels in ((archive.train_list, PIXELS[:count]), (archive.test_list, PIXELS[100 : 100 + count])):
        rows = np.array_split(np.arange(count), len(files))
        for (file, _), some in zip(files, rows, strict=True):
            data = pixels[some].transpose(0, 3, 1, 2).reshape(len(some), 3072)
            write_pickle(folder / file, {"data": data, key: [count - 1 - int(row) for row in some]})
    write_pickle(folder / archive.meta["filename"], {archive.meta["key"]: class_names(count)})


@pytest.mark.parametrize("name", MODULES)
def test_folders(tmp_path: Path, name: str) -> None:
    module, count = MODULES[name]
    write_folders(tmp_path, name, count)
    data = module(str(tmp_path), views={"default": View(0, False)})
    data.prepare_data()
    data.setup()
    assert data.classes == tuple(class_names(count))
    assert data.num_classes == count
    assert data.image_shape == (3, 32, 32)
    arrays = data.read()
    assert np.array_equal(arrays.train_images, PIXELS[:count])
    assert np.array_equal(arrays.test_images, PIXELS[100 : 100 + count])
    assert arrays.train_labels.tolist() == arrays.test_labels.tolist() == list(range(count))
    batch = next(iter(data.test_dataloader()))
    wanted = (PIXELS[100 : 100 + len(batch)] / 255 - np.array(data.mean)) / np.array(data.std)
    torch.testing.assert_close(batch.image, torch.from_numpy(wanted.transpose(0, 3, 1, 2)).float(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", MODULES)
def test_archive(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, count = MODULES[name]
    write_archive(tmp_path, {10: CIFAR10, 100: CIFAR100}[count], count, monkeypatch)
    data = module(str(tmp_path))
    data.setup()
    arrays = data.read()
    assert data.classes == tuple(class_names(count))
    assert np.array_equal(arrays.train_images, PIXELS[:count])
    assert np.array_equal(arrays.test_images, PIXELS[100 : 100 + count])
    assert arrays.train_labels.tolist() == list(range(count))[::-1]
    assert next(iter(data.test_dataloader())).target.tolist() == list(range(count))[::-1][:64]


def test_archive_is_read_where_both_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folders(tmp_path, "cifar10", 10)
    write_archive(tmp_path, CIFAR10, 10, monkeypatch)
    assert CIFAR10DataModule(str(tmp_path)).read().train_labels.tolist() == list(range(10))[::-1]


@pytest.mark.parametrize("name", MODULES)
def test_neither_is_there(tmp_path: Path, name: str) -> None:
    module, _ = MODULES[name]
    archive = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    message = (
        rf"^{name.upper()} is neither in {re.escape(str(tmp_path / archive))} .* nor in "
        rf"{re.escape(str(tmp_path / name))} .*: set data.root to .*, or data.download to true$"
    )
    with pytest.raises(FileNotFoundError, match=message):
        module(str(tmp_path)).setup()


@pytest.mark.parametrize("damage", ["test_batch", "batches.meta"])
def test_incomplete_archive(tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path, CIFAR10, 10, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / damage).unlink()
    with pytest.raises(ValueError, match=r"cifar-10-batches-py is not the whole official archive: remove it$"):
        CIFAR10DataModule(str(tmp_path)).setup()


def test_archive_with_other_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        write_archive(tmp_path, CIFAR10, 10, patch)
    with pytest.raises(ValueError, match=r"cifar-10-batches-py is not the whole official archive: remove it$"):
        CIFAR10DataModule(str(tmp_path)).setup()


def test_wrong_number_of_classes(tmp_path: Path) -> None:
    write_folders(tmp_path, "cifar100", 10)
    with pytest.raises(ValueError, match=r"^CIFAR100 must have 100 classes, got 10 in "):
        CIFAR100DataModule(str(tmp_path)).setup()


def test_wrong_image_size_is_named(tmp_path: Path) -> None:
    write_folders(tmp_path, "cifar10", 10)
    Image.new("RGB", (64, 64)).save(tmp_path / "cifar10/test/class03/000.png")
    with pytest.raises(ValueError, match=r"class03/000.png must be an image of 32x32 pixels, got 64x64$"):
        CIFAR10DataModule(str(tmp_path)).setup()


@pytest.mark.parametrize(("present", "fetched"), [(None, True), ("cifar10", False), ("cifar-10-batches-py", False)])
def test_download_fetches_only_what_is_missing(tmp_path: Path, present: str | None, fetched: bool) -> None:
    calls = []

    class Archive(CIFAR10):  # type: ignore[misc]  # torchvision is untyped
        def __init__(self, root: str, download: bool = False) -> None:
            calls.append((root, download))

    if present is not None:
        (tmp_path / present).mkdir()
    download_cifar(tmp_path, Archive, "cifar10")
    assert calls == ([(str(tmp_path), True)] if fetched else [])


@pytest.mark.parametrize(("name", "archive"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_only_prepare_data_downloads_and_only_if_asked(
    tmp_path: Path, name: str, archive: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    monkeypatch.setattr(cifar, "download_cifar", lambda *arguments: calls.append(arguments))
    module, _ = MODULES[name]
    module(str(tmp_path)).prepare_data()
    data = module(str(tmp_path), download=True)
    assert calls == []
    data.prepare_data()
    assert calls == [(tmp_path, archive, name)]


def test_defaults() -> None:
    data = CIFAR100DataModule()
    assert data.views == {"default": View(crop_padding=4, flip=True, cutout=0, rand_augment=None)}
    assert (data.mixing, data.global_batch_size, data.val_fraction, data.repeats) == (None, 64, 0.0, 1)
    assert (data.mean, data.std) == ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
    assert (CIFAR10DataModule.mean, CIFAR10DataModule.std) == ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def parsed(*arguments: str) -> CIFAR100DataModule:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(CIFAR100DataModule, "data")
    config = parser.parse_args([f"--data={CIFAR100DataModule.__module__}.CIFAR100DataModule", *arguments])
    data: CIFAR100DataModule = parser.instantiate(config).data
    return data


def test_command_line() -> None:
    assert parsed("--data.mixing.mixup_alpha=0.2").mixing == Mixing(mixup_alpha=0.2)
    assert parsed("--data.views={default: {crop_padding: 2}}").views == {"default": View(crop_padding=2)}
    data = parsed(
        "--data.views={default: {cutout: 8}, peer: {rand_augment: {magnitude: 5}}}",
        "--data.views.default.flip=false",
        "--data.mixing={mixup_alpha: 0.8, cutmix_alpha: 1.0}",
        "--data.global_batch_size=128",
        "--data.validate_on_test=true",
    )
    assert data.views == {
        "default": View(cutout=8, flip=False),
        "peer": View(rand_augment=RandAugment(magnitude=5)),
    }
    assert data.mixing == Mixing(0.8, 1.0)
    assert (data.global_batch_size, data.validate_on_test) == (128, True)
    assert parsed("--data.mixing.mixup_alpha=0.2", "--data.mixing=null").mixing is None


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--data.views={default: {crop_paddin: 2}}", "crop_paddin"),
        ("--data.views={default: {cutout: -1}}", "cutout must be >= 0 pixels, got -1"),
        ("--data.views={peer: {}}", r"views must have a view named 'default', got \['peer'\]"),
        ("--data.mixing.prob=0.5", "mixing needs mixup_alpha > 0 or cutmix_alpha > 0"),
        ("--data.mixing.mixup_alpha=much", "much"),
    ],
)
def test_command_line_faults(argument: str, message: str) -> None:
    with pytest.raises((ArgumentError, ValueError), match=message):
        parsed(argument)


def test_real_images(cifar100_root: Path) -> None:
    data = CIFAR100DataModule(str(cifar100_root), eval_batch_size=250, seed=0)
    data.setup()
    counts = torch.bincount(data.store("train", torch.device("cpu")).target)
    assert len(counts) == 100
    assert len(set(counts.tolist())) == 1, "the classes are balanced"
    assert data.classes[:3] == ("apple", "aquarium_fish", "baby")
    batches = list(data.test_dataloader())
    images = torch.cat([batch.image for batch in batches])
    assert images.mean((0, 2, 3)).abs().max() < 0.1
    assert (images.std((0, 2, 3)) - 1).abs().max() < 0.1
    assert torch.cat([batch.target for batch in batches]).tolist() == sorted(list(range(100)) * (len(images) // 100))


def test_all_of_the_real_images(data_root: Path) -> None:
    data = CIFAR100DataModule(str(data_root))
    arrays = data.read()
    assert arrays.train_images.shape == (50_000, 32, 32, 3)
    assert arrays.test_images.shape == (10_000, 32, 32, 3)
    counts = np.stack([np.bincount(arrays.train_images[..., channel].ravel(), minlength=256) for channel in range(3)])
    shades = np.arange(256) / 255
    mean = (counts * shades).sum(1) / counts.sum(1)
    std = np.sqrt((counts * shades**2).sum(1) / counts.sum(1) - mean**2)
    assert mean.tolist() == pytest.approx(data.mean, abs=2e-4)
    assert std.tolist() == pytest.approx(data.std, abs=2e-4)
