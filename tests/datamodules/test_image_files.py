"""What is listed as an image, and what is decoded of it."""

import io
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import ImageFolder

from kd_lightning.datamodules.image_files import BadImageError, decode, list_images, require_same_classes


def saved(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    """What `decode` makes of an image that went through a file."""
    image.save(path)
    decoded = decode(path)
    assert decoded.mode == "RGB"
    return np.asarray(decoded)


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


def test_grey_is_the_same_in_all_channels(tmp_path: Path) -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    assert np.array_equal(saved(Image.fromarray(grey), tmp_path / "x.png"), np.stack([grey] * 3, -1))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path: Path, suffix: str) -> None:
    grey = np.array([[0, 255, 256, 511, 0x1234, 0x8000, 0xFFFF]], dtype=np.uint16)
    decoded = saved(Image.fromarray(grey), tmp_path / f"x.{suffix}")
    assert decoded[0].tolist() == [[value] * 3 for value in (0, 0, 1, 1, 0x12, 0x80, 0xFF)]


def test_palette_gives_its_colours_without_a_warning(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "x.png", transparency=bytes([0, 128]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.asarray(decode(tmp_path / "x.png")).tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_transparency_is_dropped(tmp_path: Path) -> None:
    assert saved(Image.new("RGBA", (1, 1), (9, 8, 7, 0)), tmp_path / "x.png").tolist() == [[[9, 8, 7]]]


def test_cmyk_gives_its_colour(tmp_path: Path) -> None:
    # cyan 100 %: no red, all of green and blue
    decoded = saved(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), tmp_path / "x.jpg")[8, 8].astype(int)
    assert np.abs(decoded - [0, 255, 255]).max() <= 3


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert saved(image, tmp_path / "x.png").tolist() == [[[0] * 3, [255] * 3]]


def jpeg(size: int = 64) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(jpeg()[:1500], "truncated"), (b"", "cannot identify"), (b"<html>not found</html>", "cannot identify")],
    ids=["truncated", "empty", "foreign"],
)
def test_what_cannot_be_decoded_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(BadImageError, match=f"cannot decode image {re.escape(str(path))}: .*{reason}"):
        decode(path)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.fromarray(np.full((4, 4), 70000, dtype=np.int32)), "32-bit grey values in 70000 … 70000"),
        (Image.fromarray(np.ones((4, 4), dtype=np.float32)), "floating-point grey values have no known range"),
    ],
)
def test_values_without_a_known_range_are_refused(tmp_path: Path, image: Image.Image, reason: str) -> None:
    image.save(tmp_path / "x.tif")
    with pytest.raises(BadImageError, match=f"x.tif: {reason}"):
        decode(tmp_path / "x.tif")


def test_a_file_that_is_gone_is_no_bad_image(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "gone.jpg"))):
        decode(tmp_path / "gone.jpg")
