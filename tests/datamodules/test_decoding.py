"""What is decoded of an image file: Pillow's pixels, whoever decodes."""

import io
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kd_lightning.datamodules import decoding
from kd_lightning.datamodules.decoding import by_pillow, decode, plain_size, read_file
from kd_lightning.datamodules.encoded import BadImageError, Encoded


def saved(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    """What `decode` makes of an image that went through a file."""
    image.save(path)
    decoded = decode(read_file(str(path)))
    assert decoded.dtype == np.uint8
    assert decoded.shape == (image.height, image.width, 3)
    return decoded


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
        assert decode(read_file(str(tmp_path / "x.png"))).tolist() == [[[10, 20, 30], [40, 50, 60]]]


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
        decode(read_file(str(path)))


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
        decode(read_file(str(tmp_path / "x.tif")))


def test_a_file_that_is_gone_is_no_bad_image(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "gone.jpg"))):
        read_file(str(tmp_path / "gone.jpg"))


SMOOTH = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)).resize((283, 331))


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> Encoded:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Encoded(file.getvalue(), "x")


def never(unwanted: Encoded) -> NDArray[np.uint8]:
    raise AssertionError("Pillow was asked")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}], ids=str)
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_plain_jpegs_get_pillows_pixels_without_it(
    options: dict[str, Any], subsampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = encoded(SMOOTH, subsampling=subsampling, **options)
    expected = by_pillow(image)
    monkeypatch.setattr(decoding, "by_pillow", never)
    assert plain_size(image.data) == (331, 283)
    assert np.array_equal(decode(image), expected)


def test_grey_jpegs_get_pillows_pixels_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    image = encoded(SMOOTH.convert("L"))
    expected = by_pillow(image)
    monkeypatch.setattr(decoding, "by_pillow", never)
    assert np.array_equal(decode(image), expected)


def test_real_images_get_pillows_pixels(imagenet_sample_root: Path) -> None:
    paths = sorted((imagenet_sample_root / "imagenet_sample/train").rglob("*.JPEG"))
    assert len(paths) == 100
    images = [read_file(str(path)) for path in paths]
    assert sum(plain_size(image.data) is not None for image in images) >= 98
    assert all(np.array_equal(decode(image), by_pillow(image)) for image in images)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_other_formats_are_pillows(kind: str) -> None:
    image = encoded(SMOOTH, kind)
    assert plain_size(image.data) is None
    assert np.array_equal(decode(image), by_pillow(image))
    assert decode(image).shape == (331, 283, 3)


@pytest.mark.parametrize("options", [{}, {"keep_rgb": True}], ids=["CMYK", "RGB"])
def test_other_colours_of_jpeg_are_pillows(options: dict[str, Any]) -> None:
    image = encoded(SMOOTH if options else SMOOTH.convert("CMYK"), **options)
    assert plain_size(image.data) is None
    assert np.array_equal(decode(image), by_pillow(image))


def test_orientation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    turned = encoded(SMOOTH, exif=exif)
    assert np.array_equal(decode(turned), decode(encoded(SMOOTH)))


def test_untidy_jpegs_are_what_pillow_makes_of_them() -> None:
    whole = encoded(SMOOTH).data
    for untidy in (whole + b"rest", whole[:-2] + b"\0\0\0" + whole[-2:]):
        assert np.array_equal(decode(Encoded(untidy, "x")), by_pillow(Encoded(whole, "x")))


def test_huge_images_are_left_to_pillows_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    image = encoded(SMOOTH)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 331 * 283 // 2 - 1)
    assert plain_size(image.data) is None
    with pytest.raises(BadImageError, match="exceeds limit"):
        decode(image)


@pytest.mark.parametrize(
    ("at_least", "size"),
    [
        ((168, 140), (168, 140)),
        ((169, 140), (336, 280)),
        ((1, 70), (84, 70)),
        ((1, 1), (42, 35)),
        ((336, 280), (336, 280)),
    ],
)
def test_a_smaller_size_that_suffices(at_least: tuple[int, int], size: tuple[int, int]) -> None:
    image = SMOOTH.resize((280, 336))
    small = decode(encoded(image), at_least)
    assert small.shape == (*size, 3)
    averaged = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BOX)).astype(int)
    assert np.abs(small.astype(int) - averaged).mean() < 3


def test_a_smaller_size_of_another_format_is_the_whole() -> None:
    assert decode(encoded(SMOOTH, "PNG"), (10, 10)).shape == (331, 283, 3)
