"""Views of encoded images: the training crop is drawn before anything is decoded."""

from collections.abc import Sequence
from math import ceil, floor
from typing import Literal

import torch
from numpy import uint8
from numpy.typing import NDArray
from PIL import Image
from timm.data.transforms import MaybePILToTensor, RandomResizedCropAndInterpolation
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import Compose, InterpolationMode, RandomHorizontalFlip, RandomVerticalFlip

from kd_lightning.datamodules.decoding import decode, plain_size
from kd_lightning.datamodules.encoded import Encoded
from kd_lightning.datamodules.named_transform import Transform

DecodeMode = Literal["full", "scaled"]
Box = tuple[float, float, float, float]  # left, top, right, bottom

BY_TORCH = {InterpolationMode.BILINEAR: "bilinear", InterpolationMode.BICUBIC: "bicubic"}
BY_PILLOW = {
    InterpolationMode.NEAREST: Image.Resampling.NEAREST,
    InterpolationMode.BILINEAR: Image.Resampling.BILINEAR,
    InterpolationMode.BICUBIC: Image.Resampling.BICUBIC,
    InterpolationMode.LANCZOS: Image.Resampling.LANCZOS,
}
ON_TENSORS = (RandomHorizontalFlip, RandomVerticalFlip)


def resized(pixels: NDArray[uint8], box: Box, size: Sequence[int], interpolation: InterpolationMode) -> Tensor:
    """A part of an image, resized with antialiasing.

    Torch's kernel is 2.5 times as fast as Pillow's and differs from it by one level here and there; it takes whole
    pixels, and no Lanczos window.

    Args:
        pixels: uint8 ``[H, W, 3]``.
        box: (left, top, right, bottom) of the part, in pixels, fractions of them too.
        size: (height, width) to give it.
        interpolation: How.

    Returns:
        uint8 ``[3, *size]``, channels last in memory.
    """
    left, top, right, bottom = floor(box[0]), floor(box[1]), ceil(box[2]), ceil(box[3])
    part = pixels[top:bottom, left:right]
    if interpolation in BY_TORCH and (left, top, right, bottom) == box:
        image = torch.from_numpy(part)[None].contiguous().permute(0, 3, 1, 2)
        return F.interpolate(image, tuple(size), mode=BY_TORCH[interpolation], antialias=True)[0]
    inside = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    return as_tensor(Image.fromarray(part).resize((size[1], size[0]), BY_PILLOW[interpolation], inside))


def as_tensor(image: Image.Image) -> Tensor:
    """The pixels of an RGB image, uint8 ``[3, H, W]``, channels last in memory."""
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).permute(2, 0, 1)


def shown_share(size: tuple[int, int], decoded: Sequence[int]) -> float:
    """At which scale libjpeg decoded an image: in eighths, with the last row and column not filled.

    Args:
        size: (height, width) of the image, at least 8 one of them.
        decoded: (height, width) that it was decoded in.
    """
    return max(decoded[:2]) * 8 // max(size) / 8


class Decoded:
    """A transform of images, for encoded ones: decoded in full, by whatever decodes them (see `decode`).

    Args:
        transform: PIL image to uint8 tensor ``[3, S, S]``.
    """

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __call__(self, encoded: Encoded) -> Tensor:
        """The view, uint8 ``[3, S, S]``.

        Raises:
            BadImageError: if the image cannot be decoded.
        """
        return self.transform(Image.fromarray(decode(encoded)))


class CropFirst:
    """timm's training transform, for encoded images: its box is drawn first, from the size in the file's header.

    The draws are timm's, in timm's order. What follows the crop works on a tensor if it can, else on a PIL image.

    Args:
        transform: timm's, which begins with its random resized crop.
        decode: ``full`` resizes the decoded image. ``scaled`` lets libjpeg decode a large image at 1/2, 1/4 or 1/8 if
            the crop is then still as large as the view: the average over blocks of pixels comes before the resize.

    Raises:
        TypeError: if the transform begins with anything else.
        ValueError: if ``decode`` is unknown.
    """

    def __init__(self, transform: Compose, decode: DecodeMode = "full") -> None:
        crop, *rest = transform.transforms
        if not isinstance(crop, RandomResizedCropAndInterpolation):
            raise TypeError(f"the transform must begin with a random resized crop, got {crop}")
        if decode not in ("full", "scaled"):
            raise ValueError(f"decode must be 'full' or 'scaled', got {decode!r}")
        self.crop, self.scaled = crop, decode == "scaled"
        self.on_tensors = all(isinstance(part, (*ON_TENSORS, MaybePILToTensor)) for part in rest)
        self.rest = Compose([part for part in rest if not (self.on_tensors and isinstance(part, MaybePILToTensor))])

    def __call__(self, encoded: Encoded) -> Tensor:
        """The view, uint8 ``[3, S, S]``.

        Raises:
            BadImageError: if the image cannot be decoded.
        """
        size = plain_size(encoded.data)
        pixels = decode(encoded) if size is None else None
        height, width = size or (pixels.shape[:2] if pixels is not None else (0, 0))
        blank = torch.empty(1).expand(3, height, width)  # timm asks an image for its size
        top, left, rows, columns = self.crop.get_params(  # type: ignore[no-untyped-call]
            blank, self.crop.scale, self.crop.ratio
        )
        if pixels is None:
            pixels = decode(encoded, self._enough(height, width, rows, columns))
        share = shown_share((height, width), pixels.shape)
        box = (left * share, top * share, (left + columns) * share, (top + rows) * share)
        view = resized(pixels, box, self.crop.size, self.crop.interpolation)
        if self.on_tensors:
            flipped: Tensor = self.rest(view)
            return flipped
        changed: Tensor = self.rest(Image.fromarray(view.permute(1, 2, 0).contiguous().numpy()))
        return changed

    def _enough(self, height: int, width: int, rows: int, columns: int) -> tuple[int, int] | None:
        """Size of the image at which the crop is as large as the view; None for the size that it has."""
        share = max(self.crop.size[0] / rows, self.crop.size[1] / columns)
        return (ceil(height * share), ceil(width * share)) if self.scaled and share < 1 else None
