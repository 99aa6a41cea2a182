"""Views of images in memory: a whole batch is cropped, flipped, normalised and cut out at once, drawn from names."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning.datamodules.rand_augment import RandAugment
from kd_lightning.datamodules.resized_crop import ResizedCrop
from kd_lightning.seeds import below, hashed

PACKED_CHANNELS = 4  # bytes of one int32


def pack(images: Tensor) -> Tensor:
    """Images with one number per pixel, so that a crop moves pixels, not channels.

    Args:
        images: uint8 ``[N, H, W, C]`` with 1 to 4 channels.

    Returns:
        ``[N, H, W]``: uint8 for one channel, else int32 (the channels and zeros).

    Raises:
        ValueError: if the images are not of that type or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or not 1 <= images.shape[3] <= PACKED_CHANNELS:
        raise ValueError(
            f"images must be uint8 [N, H, W, C] with 1 to {PACKED_CHANNELS} channels, "
            f"got {images.dtype} {list(images.shape)}"
        )
    channels, images = images.shape[3], images.contiguous()
    if channels == 1:
        return images.squeeze(3)
    return F.pad(images, (0, PACKED_CHANNELS - channels)).view(torch.int32).squeeze(3)


def unpack(packed: Tensor, channels: int) -> Tensor:
    """The inverse of `pack`, uint8 ``[N, H, W, C]``."""
    if packed.dtype == torch.uint8:
        return packed.unsqueeze(3)
    return packed.view(torch.uint8).view(*packed.shape, PACKED_CHANNELS)[..., :channels]


def crop(packed: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Crops of the images' own size out of the images padded with zeros, some of them mirrored.

    Args:
        packed: ``[N, H, W]``, see `pack`.
        top: First row of each crop in the padded image, int64 ``[N]``, in 0 … 2 x padding.
        left: First column of each crop in the padded image, int64 ``[N]``, in 0 … 2 x padding.
        flip: Whether the crop is mirrored left to right, bool ``[N]``.
        padding: Rows and columns of zeros on each side, in pixels.
    """
    height, width = packed.shape[1:]
    padded = F.pad(packed, (padding, padding, padding, padding)) if padding else packed
    across = torch.arange(width, device=packed.device)
    columns = left[:, None] + torch.where(flip[:, None], width - 1 - across, across)
    lines = (top[:, None] + torch.arange(height, device=packed.device)) * (width + 2 * padding)
    places = lines[:, :, None] + columns[:, None, :]
    return padded.flatten(1).gather(1, places.flatten(1)).view(packed.shape)


def scale_and_shift(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """What takes bytes to normalised numbers, ``x * scale + shift``, two float32 ``[C]``.

    Args:
        mean: Of each channel, in units of [0, 1].
        std: Of each channel, in units of [0, 1].
    """
    center, spread = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    return (1 / (255 * spread)).float(), (-center / spread).float()


def normalise(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Images as a network takes them.

    Args:
        images: uint8 ``[N, H, W, C]``.
        scale: Factor of each channel, ``[C]``, see `scale_and_shift`.
        shift: Summand of each channel, ``[C]``.

    Returns:
        float32 ``[N, C, H, W]``, channels_last in memory. Product and sum are two kernels, so that no device fuses
        them and all give the same bits.
    """
    count, height, width, channels = images.shape
    values = images.to(torch.float32).view(count, height * width * channels)
    # Tiled to whole images, the factors make one long inner loop: 4 times faster than broadcasting 3 numbers.
    values = values.mul_(scale.repeat(height * width)).add_(shift.repeat(height * width))
    return values.view(images.shape).permute(0, 3, 1, 2)


def cutout(images: Tensor, center_y: Tensor, center_x: Tensor, side: int) -> Tensor:
    """Images with a square of zeros each, in place; on normalised images zero is the mean colour.

    Source: T. DeVries, G. Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017.

    Args:
        images: Normalised, float ``[N, C, H, W]``.
        center_y: Row of each square's centre, int64 ``[N]``; the square is clipped at the borders.
        center_x: Column of each square's centre, int64 ``[N]``.
        side: Of the square, in pixels; rows ``center - side // 2`` up to ``side`` further ones.
    """
    height, width = images.shape[2:]
    down = torch.arange(height, device=images.device) - (center_y[:, None] - side // 2)
    across = torch.arange(width, device=images.device) - (center_x[:, None] - side // 2)
    inside = ((down >= 0) & (down < side))[:, None, :, None] & ((across >= 0) & (across < side))[:, None, None, :]
    return images.masked_fill_(inside, 0.0)


def view_key(seed: int, name: str, index: Tensor, number: Tensor) -> Tensor:
    """What all randomness of a view is drawn from: a hash of its name, int64 ``[N]``."""
    return hashed(seed, name, index, number)


@dataclass(frozen=True)
class View:
    """How a view of a training image is made; evaluation shows the image as it is.

    Crop and mirror image come first, then RandAugment, then normalisation, then cutout.

    Args:
        crop_padding: Zeros around the image before a crop of its own size, in pixels; 0 for no crop, as it must be
            beside a resized crop.
        flip: Mirror half of the views left to right.
        cutout: Side of a square that is set to the mean colour, in pixels; 0 for none.
        rand_augment: Random colour and shape changes; null for none.
        resized_crop: A part of the image brought to one size, which may be another than the image's; null for none.
            The default view keeps the image's size.

    Raises:
        ValueError: if a length is negative, or there are two kinds of crops.
    """

    crop_padding: int = 4
    flip: bool = True
    cutout: int = 0
    rand_augment: RandAugment | None = None
    resized_crop: ResizedCrop | None = None

    def __post_init__(self) -> None:
        """Check the lengths."""
        for name, value in {"crop_padding": self.crop_padding, "cutout": self.cutout}.items():
            if value < 0:
                raise ValueError(f"{name} must be >= 0 pixels, got {value}")
        if self.resized_crop is not None and self.crop_padding:
            raise ValueError(f"crop_padding must be 0 beside a resized_crop, got {self.crop_padding}")

    def make(self, packed: Tensor, key: Tensor, channels: int, scale: Tensor, shift: Tensor) -> Tensor:
        """Views of images, float32 ``[N, C, H, W]``, channels_last in memory.

        Args:
            packed: The images, ``[N, H, W]``, see `pack`.
            key: Names of the views, int64 ``[N]``, see `view_key`.
            channels: C.
            scale: See `scale_and_shift`.
            shift: See `scale_and_shift`.
        """
        if self.resized_crop is not None:
            packed = pack(self.resized_crop.apply(unpack(packed, channels), key))
        height, width = packed.shape[1:]
        if self.crop_padding or self.flip:
            span = 2 * self.crop_padding + 1
            corner = below(span * span, key, "crop")
            flip = (hashed(key, "flip") & 1).bool() if self.flip else torch.zeros_like(key, dtype=torch.bool)
            packed = crop(packed, corner // span, corner % span, flip, self.crop_padding)
        images = unpack(packed, channels)
        if self.rand_augment is not None:
            images = self.rand_augment.apply(images.permute(0, 3, 1, 2), key).permute(0, 2, 3, 1)
        view = normalise(images, scale, shift)
        if self.cutout:
            center = below(height * width, key, "cutout")
            view = cutout(view, center // width, center % width, self.cutout)
        return view


PLAIN = View(crop_padding=0, flip=False)
