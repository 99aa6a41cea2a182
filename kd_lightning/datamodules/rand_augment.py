"""RandAugment of a batch of uint8 images, drawn from names."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from kd_lightning.seeds import below, hashed

MAX_MAGNITUDE = 30
SIGNED = (
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
)
UNSIGNED = ("identity", "posterize", "solarize", "auto_contrast", "equalize")
OPS = SIGNED + UNSIGNED


def affine(images: Tensor, translate: tuple[int, int] = (0, 0), shear: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """Images moved by whole pixels, or sheared, by slopes, about their upper left corner."""
    degrees = [math.degrees(math.atan(slope)) for slope in shear]
    moved: Tensor = V.affine(images, 0.0, list(translate), 1.0, degrees, center=[0, 0] if any(shear) else None)
    return moved


def change(images: Tensor, op: str, strength: float) -> Tensor:
    """Images after one operation, with the ranges of torchvision's ``RandAugment``.

    Args:
        images: uint8 ``[N, C, H, W]``.
        op: One of `OPS`.
        strength: Share of the operation's range, in [-1, 1] for the signed operations and [0, 1] for the others.
    """
    height, width = images.shape[2:]
    match op:
        case "shear_x":
            images = affine(images, shear=(0.3 * strength, 0.0))
        case "shear_y":
            images = affine(images, shear=(0.0, 0.3 * strength))
        case "translate_x":
            images = affine(images, translate=(int(150 / 331 * width * strength), 0))
        case "translate_y":
            images = affine(images, translate=(0, int(150 / 331 * height * strength)))
        case "rotate":
            images = V.rotate(images, 30.0 * strength)
        case "brightness":
            images = V.adjust_brightness(images, 1 + 0.9 * strength)
        case "color":
            images = V.adjust_saturation(images, 1 + 0.9 * strength)
        case "contrast":
            images = V.adjust_contrast(images, 1 + 0.9 * strength)
        case "sharpness":
            images = V.adjust_sharpness(images, 1 + 0.9 * strength)
        case "posterize":
            images = V.posterize(images, 8 - round(4 * strength))
        case "solarize":
            images = V.solarize(images, 255 * (1 - strength))
        case "auto_contrast":
            images = V.autocontrast(images)
        case "equalize":
            images = V.equalize(images)
    return images


@dataclass(frozen=True)
class RandAugment:
    """A few operations per view, each any of the 14 with equal chance, signed ones with either sign.

    Source: E. Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space", 2020.
    Views that drew the same operation go through it together, which changes none of them. It is still some ten times
    slower than crop and mirror image: on one CPU core expect 10,000 views of 32x32 pixels a second.

    Args:
        num_ops: Operations per view, one after the other.
        magnitude: Strength of all operations, in 0 … 30.

    Raises:
        ValueError: if an argument is out of range.
    """

    num_ops: int = 2
    magnitude: int = 9

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.num_ops < 1:
            raise ValueError(f"rand_augment.num_ops must be >= 1, got {self.num_ops} (rand_augment: null for none)")
        if not 0 <= self.magnitude <= MAX_MAGNITUDE:
            raise ValueError(f"rand_augment.magnitude must be in 0 … {MAX_MAGNITUDE}, got {self.magnitude}")

    def apply(self, images: Tensor, key: Tensor) -> Tensor:
        """Changed images.

        Args:
            images: uint8 ``[N, C, H, W]``, C 1 or 3.
            key: Names of the views, int64 ``[N]``.
        """
        strength = self.magnitude / MAX_MAGNITUDE
        for step in range(self.num_ops):
            op = below(len(OPS), key, "rand_augment op", step)
            negative = ((hashed(key, "rand_augment sign", step) & 1) == 1) & (op < len(SIGNED))
            changed = torch.empty_like(images)
            for choice in torch.unique(op * 2 + negative).tolist():
                drawn = (op * 2 + negative) == choice
                sign = -1 if choice % 2 else 1
                changed[drawn] = change(images[drawn], OPS[choice // 2], sign * strength)
            images = changed
        return images
