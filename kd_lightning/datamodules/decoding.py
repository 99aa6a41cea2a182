"""How an image is decoded: plain JPEG files by libjpeg-turbo directly, everything else by Pillow."""

import io
import os

import numpy as np
import PIL
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from kd_lightning.datamodules.encoded import BadImageError, Encoded

START_OF_JPEG = b"\xff\xd8"
PLAIN = ("YCbCr", "Gray")  # colours of JPEG files that both decode alike
MIN_FACTOR = 2  # 1/2, 1/4 and 1/8 have fast inverse transforms, 7/8 … 5/8 take longer than the whole image
VERSIONS = f"Pillow {PIL.__version__}, simplejpeg {simplejpeg.__version__}"


def as_rgb(image: Image.Image) -> Image.Image:
    """Eight bits of red, green and blue.

    Sixteen-bit grey values keep their high byte, as Pillow keeps it of sixteen-bit colours; its own conversion clips
    them at 255. Transparency is dropped.

    Raises:
        ValueError: if the values of an image are in no known range.
    """
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.size and (grey.min() < 0 or grey.max() > 0xFFFF):
            raise ValueError(f"32-bit grey values in {grey.min()} … {grey.max()}, expected at most 16 bits")
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point grey values have no known range")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the direct way is the same, with a warning
    return image.convert("RGB")


def by_pillow(encoded: Encoded) -> NDArray[np.uint8]:
    """The image as Pillow decodes it, uint8 ``[H, W, 3]``.

    Raises:
        BadImageError: if it cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(encoded.data)) as image:
            return np.array(as_rgb(image))  # a copy, as torch warns of arrays that cannot be written
    except UnidentifiedImageError as error:
        raise BadImageError(f"cannot decode image {encoded.name}: cannot identify its format") from error
    except Exception as error:  # Pillow's decoders let out whatever they meet: SyntaxError, struct.error, zlib.error
        raise BadImageError(f"cannot decode image {encoded.name}: {error}") from error


def plain_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG file that `decode` need not ask Pillow about; None for any other."""
    if not data.startswith(START_OF_JPEG):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    limit = Image.MAX_IMAGE_PIXELS or height * width  # above it Pillow warns, or refuses
    return (height, width) if colours in PLAIN and height * width <= limit else None


def decode(encoded: Encoded, at_least: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """The image, uint8 ``[H, W, 3]``; EXIF orientation is not applied, as in the published pipelines.

    Plain JPEG files get the very pixels that Pillow gives them, in about half the time, as they are not copied into
    four bytes a pixel and back. What is doubtful in any way is left to Pillow.

    Args:
        encoded: The content of the file.
        at_least: (height, width) that suffice: a plain JPEG file is then decoded at 1/2, 1/4 or 1/8 of its size, if
            that is not less.

    Raises:
        BadImageError: if it cannot be decoded.
    """
    size = plain_size(encoded.data)
    if size is None:
        return by_pillow(encoded)
    least = at_least or size
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            encoded.data, min_height=least[0], min_width=least[1], min_factor=MIN_FACTOR if at_least else 1
        )
    except ValueError:  # damaged, or merely untidy: Pillow decides which
        return by_pillow(encoded)
    return pixels


def read_file(path: str) -> Encoded:
    """The content of an image file.

    Raises:
        OSError: if it cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        return Encoded(file.read(), os.fspath(path))
