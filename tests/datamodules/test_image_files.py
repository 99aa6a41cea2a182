"""What is listed as an image."""

import re
from pathlib import Path

import pytest
import torch
from torchvision.datasets import ImageFolder

from kd_lightning.datamodules.encoded import require_same_classes
from kd_lightning.datamodules.image_files import list_images


def test_listing_is_torchvisions(image_root: Path) -> None:
    (image_root / "train/b/deeper").mkdir()
    (image_root / "train/b/0.jpg").rename(image_root / "train/b/deeper/x.JPEG")
    (image_root / "train/b/notes.txt").write_text("no image")
    expected = ImageFolder(str(image_root / "train"))
    files = list_images(image_root / "train")
    assert files.classes == tuple(expected.classes)
    assert files.labels.tolist() == expected.targets
    assert [str(files.path(row)) for row in range(len(files))] == [path for path, _ in expected.samples]
    assert files.labels.dtype == torch.int64


def test_hidden_files_and_folders_are_left_out(image_root: Path) -> None:
    before = [list_images(image_root / "train").path(row) for row in range(9)]
    for name in ("a/.ipynb_checkpoints/0.jpg", "a/._0.jpg", ".cache/0.jpg"):
        (image_root / "train" / name).parent.mkdir(exist_ok=True)
        (image_root / "train" / name).write_bytes(b"")
    after = list_images(image_root / "train")
    assert [after.path(row) for row in range(len(after))] == before


def test_linked_folders_are_followed(image_root: Path) -> None:
    (image_root / "train/b").rename(image_root / "elsewhere")
    (image_root / "train/b").mkdir()
    (image_root / "train/b/part").symlink_to(image_root / "elsewhere")
    assert list_images(image_root / "train").labels.tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 2]


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no image folder at {re.escape(str(tmp_path / 'train'))}: expected"):
        list_images(tmp_path / "train")


def test_folder_without_classes_is_named(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path))} has no class folders"):
        list_images(tmp_path)


def test_empty_class_folder_is_named(image_root: Path) -> None:
    empty = image_root / "train/bb"
    empty.mkdir()
    (empty / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=f"class folder without images: {re.escape(str(empty))}; known suffixes"):
        list_images(image_root / "train")


def test_difference_of_classes_is_named(image_root: Path) -> None:
    (image_root / "val/c").rename(image_root / "val/d")
    with pytest.raises(ValueError, match=r"same class folders; only in .*/train: c; only in .*/val: d$"):
        require_same_classes(list_images(image_root / "train"), list_images(image_root / "val"))


def test_long_differences_are_cut_short(tmp_path: Path, image_root: Path) -> None:
    train = list_images(image_root / "train")
    for i in range(8):
        (tmp_path / f"other/k{i}").mkdir(parents=True)
        (tmp_path / f"other/k{i}/0.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"other: k0, k1, k2, k3, k4, … \(8 in all\)"):
        require_same_classes(train, list_images(tmp_path / "other"))
