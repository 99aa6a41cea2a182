"""Random resized crops of a batch of images, drawn from names."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kd_lightning.seeds import hashed

TRIALS = 10  # boxes that are drawn before the fallback, as in torchvision's RandomResizedCrop


def uniform64(*names: int | str | Tensor) -> Tensor:
    """Numbers in [0, 1), float64, one per element of the names; 32 bits each."""
    return hashed(*names).double() * 2.0**-32


def largest_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int]:
    """Rows and columns of the largest box in an image whose width / height is in ``ratio``."""
    if width / height < ratio[0]:
        return min(round(width / ratio[0]), height), width
    if width / height > ratio[1]:
        return height, min(round(height * ratio[1]), width)
    return height, width


def weights(start: Tensor, length: Tensor, size: int, extent: int) -> tuple[Tensor, Tensor]:
    """Which pixels of a line make each pixel of the result, and by how much: bilinear, antialiased where it shrinks.

    Triangles as wide as a pixel of the result, or of the image where that is wider, and normalised inside the box:
    what Pillow and torchvision do.

    Args:
        start: First pixel of each box, int64 ``[N]``.
        length: Pixels of each box, int64 ``[N]``.
        size: S, pixels of the result.
        extent: Pixels of the image, of which a box is a part.

    Returns:
        Places, int64, and weights, float32, both ``[N, S, K]``. K is the same for all boxes in such an image, so that
        no box depends on the others of the batch.
    """
    scale = length.double() / size
    reach = scale.clamp(min=1.0)[:, None, None]
    centre = (torch.arange(size, device=start.device) + 0.5) * scale[:, None]
    taps = 2 * math.ceil(max(extent / size, 1.0)) + 1
    first = (centre - reach[..., 0]).floor().long()
    place = first[..., None] + torch.arange(taps, device=start.device)
    share = (1 - ((place + 0.5 - centre[..., None]) / reach).abs()).clamp(min=0.0)
    share = share * ((place >= 0) & (place < length[:, None, None]))
    inside = torch.minimum(place.clamp(min=0), length[:, None, None] - 1)
    return inside + start[:, None, None], (share / share.sum(dim=2, keepdim=True)).float()


def summed(lines: Tensor, place: Tensor, share: Tensor) -> Tensor:
    """Weighted sums over axis 1 of ``[N, L, M]``, by `weights`, ``[N, S, M]``.

    One kernel for each product and each sum, in a fixed order, so that all devices and batches give the same bits.
    """
    flat, offset = lines.flatten(0, 1), torch.arange(len(lines), device=lines.device)[:, None] * lines.shape[1]
    total = lines.new_zeros(*place.shape[:2], lines.shape[2])
    for tap in range(place.shape[2]):
        rows = flat.index_select(0, (place[..., tap] + offset).flatten())
        total += rows.view_as(total).mul_(share[..., tap, None])
    return total


def resized_crop(images: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes of images, brought to one size: bilinear, antialiased where a box shrinks.

    Args:
        images: ``[N, H, W, C]``, bytes or floats.
        box: First row, first column, rows and columns of each, int64 ``[4, N]``, inside the image.
        size: Rows and columns of the result.

    Returns:
        ``[N, *size, C]`` of the images' type; bytes are rounded.
    """
    count, height, width, channels = images.shape
    top, left, rows, columns = box
    lines = images.float() if images.dtype == torch.uint8 else images
    down = summed(lines.flatten(2), *weights(top, rows, size[0], height)).view(count, size[0], width, channels)
    across = summed(down.transpose(1, 2).flatten(2), *weights(left, columns, size[1], width))
    made = across.view(count, size[1], size[0], channels).transpose(1, 2)
    return made.round().to(torch.uint8) if images.dtype == torch.uint8 else made


@dataclass(frozen=True)
class ResizedCrop:
    """A box of random area and shape at a random place, brought to one size.

    Drawn as by torchvision's ``RandomResizedCrop``: area and log(width / height) uniformly, up to ten times until the
    box fits; then the largest box of that shape in the middle. Bilinear, antialiased where the box shrinks.

    Args:
        scale: Smallest and largest share of the image's area, in (0, 1].
        ratio: Smallest and largest width / height, > 0.
        size: Side of the square result, in pixels; null for the image's own height and width.

    Raises:
        ValueError: if an argument is out of range.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    size: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f"resized_crop.scale must be two shares in (0, 1], the smaller first, got {list(self.scale)}"
            )
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"resized_crop.ratio must be two numbers > 0, the smaller first, got {list(self.ratio)}")
        if self.size is not None and self.size < 1:
            raise ValueError(f"resized_crop.size must be >= 1 pixel, or null for the image's own, got {self.size}")

    def draw(self, key: Tensor, height: int, width: int) -> Tensor:
        """First row, first column, rows and columns of the boxes, int64 ``[4, N]``.

        Args:
            key: Names of the views, int64 ``[N]``.
            height: Of the images, in pixels.
            width: Of the images, in pixels.
        """
        trial, name = torch.arange(TRIALS, device=key.device), key[:, None]
        low, high = self.scale
        area = height * width * (low + (high - low) * uniform64(name, "resized_crop area", trial))
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = (low + (high - low) * uniform64(name, "resized_crop ratio", trial)).exp()
        columns, rows = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
        fits = (columns > 0) & (columns <= width) & (rows > 0) & (rows <= height)
        chosen = fits.long().argmax(dim=1, keepdim=True)
        whole = largest_box(height, width, self.ratio)
        drawn = fits.any(dim=1)
        rows = torch.where(drawn, rows.gather(1, chosen).squeeze(1), whole[0])
        columns = torch.where(drawn, columns.gather(1, chosen).squeeze(1), whole[1])
        top = torch.where(drawn, _place(key, "top", height - rows), (height - rows) // 2)
        left = torch.where(drawn, _place(key, "left", width - columns), (width - columns) // 2)
        return torch.stack([top, left, rows, columns])

    def apply(self, images: Tensor, key: Tensor) -> Tensor:
        """Crops of images ``[N, H, W, C]``, bytes or floats, of which the views have names ``[N]``."""
        height, width = images.shape[1:3]
        size = (height, width) if self.size is None else (self.size, self.size)
        return resized_crop(images, self.draw(key, height, width), size)


def _place(key: Tensor, side: str, room: Tensor) -> Tensor:
    """Places in 0 … room, int64 ``[N]``."""
    return (hashed(key, f"resized_crop {side}") * (room + 1)) >> 32
