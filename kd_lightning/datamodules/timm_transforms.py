"""timm's training and evaluation transforms, from a few arguments or from what a timm model was trained with."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from timm.data.config import resolve_data_config
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.transforms_factory import create_transform
from timm.models import get_pretrained_cfg, list_models

from kd_lightning.datamodules.named_transform import Transform
from kd_lightning.datamodules.posterize import allow_no_bits

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of its images.

    Attributes:
        image_size: Height and width, in pixels.
        crop_pct: Side of the evaluation crop over the shorter side of the resized image, in (0, 1].
        crop_mode: timm's: ``center``, ``squash`` or ``border``.
        interpolation: Of every resize.
        mean: Of each channel, in units of [0, 1].
        std: Of each channel, in units of [0, 1].
    """

    image_size: int = 224
    crop_pct: float = 0.875
    crop_mode: str = "center"
    interpolation: str = "bilinear"
    mean: Colour = IMAGENET_DEFAULT_MEAN
    std: Colour = IMAGENET_DEFAULT_STD


def of_model(model: str, image_size: int | None = None) -> Preprocessing:
    """What the weights of a timm model were trained with; no network is built.

    Args:
        model: Name, with or without a tag of its weights.
        image_size: Instead of the model's, in pixels.

    Raises:
        ValueError: if timm does not know the model, or its images are not square and no size is given.
    """
    try:
        card = get_pretrained_cfg(model)
    except RuntimeError:  # the model is known, its tag is not
        card = None
    if card is None:
        near = difflib.get_close_matches(model, list_models(pretrained="." in model), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"model must be the name of a timm model, got {model!r}{hint}")
    config = resolve_data_config(pretrained_cfg=card.to_dict())  # type: ignore[no-untyped-call]
    _, height, width = config["input_size"]
    if image_size is None and height != width:
        raise ValueError(f"model {model!r} takes images of {height}x{width} pixels: give an image_size")
    return Preprocessing(
        image_size or height,
        config["crop_pct"],
        config["crop_mode"],
        config["interpolation"],
        tuple(config["mean"]),
        tuple(config["std"]),
    )


def preprocessing(
    model: str | None = None,
    image_size: int | None = None,
    crop_pct: float | None = None,
    interpolation: Interpolation | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Preprocessing:
    """What is given, else the model's, else ImageNet's classic: 224 of 256 pixels, bilinear.

    Raises:
        ValueError: if a value is out of range, or the model is unknown.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be >= 1, got {image_size}")
    if crop_pct is not None and not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct must be in (0, 1], got {crop_pct}")
    for name, colour in {"mean": mean, "std": std}.items():
        if colour is not None and len(colour) != 3:
            raise ValueError(f"{name} must have 3 channels, got {list(colour)}")
    if std is not None and min(std) <= 0:
        raise ValueError(f"std must be > 0, got {list(std)}")
    base = of_model(model, image_size) if model is not None else Preprocessing()
    return Preprocessing(
        image_size or base.image_size,
        crop_pct or base.crop_pct,
        base.crop_mode,
        interpolation or base.interpolation,
        base.mean if mean is None else (mean[0], mean[1], mean[2]),
        base.std if std is None else (std[0], std[1], std[2]),
    )


def eval_transform(wanted: Preprocessing) -> Transform:
    """Resize and centre crop to uint8 ``[3, S, S]``."""
    transform: Transform = create_transform(
        wanted.image_size,
        interpolation=wanted.interpolation,
        mean=wanted.mean,
        crop_pct=wanted.crop_pct,
        crop_mode=wanted.crop_mode,
        normalize=False,
    )
    return transform


def train_transform(
    wanted: Preprocessing,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    hflip: float = 0.5,
    auto_augment: str | None = None,
    color_jitter: float | None = None,
) -> Transform:
    """Random resized crop, flip, policy or colour jitter to uint8 ``[3, S, S]``.

    Args:
        wanted: Size, interpolation and mean colour (the policies fill with it).
        scale: Range of the area of the crop, as a share of the image's.
        ratio: Range of the aspect ratio of the crop.
        hflip: Probability of a horizontal flip.
        auto_augment: A policy in timm's notation, such as ``rand-m9-mstd0.5-inc1`` (RandAugment as DeiT has it),
            ``augmix-m3-w3``, ``original`` (AutoAugment) or ``3a`` (DeiT III).
        color_jitter: Strength of brightness, contrast and saturation jitter.

    Raises:
        ValueError: if a value is out of range, or jitter is given with a policy that timm does not apply it with.
    """
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale must be an ascending range in (0, 1], got {list(scale)}")
    if not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"ratio must be an ascending range of numbers > 0, got {list(ratio)}")
    if not 0 <= hflip <= 1:
        raise ValueError(f"hflip must be a probability in [0, 1], got {hflip}")
    if color_jitter is not None and color_jitter < 0:
        raise ValueError(f"color_jitter must be >= 0, got {color_jitter}")
    if auto_augment is not None and color_jitter is not None and "3a" not in auto_augment:
        raise ValueError(f"color_jitter must be null with auto_augment {auto_augment!r}, got {color_jitter}")
    try:
        transform = create_transform(
            wanted.image_size,
            is_training=True,
            scale=scale,
            ratio=ratio,
            hflip=hflip,
            color_jitter=color_jitter,  # type: ignore[arg-type]  # None is for none
            auto_augment=auto_augment,
            interpolation=wanted.interpolation,
            mean=wanted.mean,
            normalize=False,
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(
            f"auto_augment must be a policy of timm, such as 'rand-m9-mstd0.5-inc1', got {auto_augment!r}: {error}"
        ) from error
    for part in transform.transforms:
        allow_no_bits(part)
    composed: Transform = transform
    return composed
