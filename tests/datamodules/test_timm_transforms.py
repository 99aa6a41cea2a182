"""Arguments become timm's transforms, and what timm would pass over is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kd_lightning.datamodules.named_transform import NamedTransform
from kd_lightning.datamodules.posterize import posterize
from kd_lightning.datamodules.timm_transforms import Preprocessing, eval_transform, preprocessing, train_transform

NOISE = Image.fromarray(np.random.default_rng(0).integers(1, 256, (40, 48, 3), dtype=np.uint8))


def test_default_is_the_classic_recipe() -> None:
    wanted = preprocessing()
    assert (wanted.image_size, wanted.crop_pct, wanted.interpolation) == (224, 0.875, "bilinear")
    assert wanted.mean == (0.485, 0.456, 0.406)
    assert wanted.std == (0.229, 0.224, 0.225)


def test_model_gives_what_is_not_given() -> None:
    assert preprocessing("dm_nfnet_f0.dm_in1k") == Preprocessing(192, 0.9, "squash", "bicubic")
    given = preprocessing("dm_nfnet_f0.dm_in1k", 160, 0.8, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    assert given == Preprocessing(160, 0.8, "squash", "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


@pytest.mark.parametrize("model", ["resnet55", "resnet50.a99_in1k"])
def test_unknown_model_is_named_with_a_near_one(model: str) -> None:
    with pytest.raises(
        ValueError, match=rf"model must be the name of a timm model, got '{model}'; did you mean .*resnet50"
    ):
        preprocessing(model)


def test_model_of_oblong_images_needs_a_size() -> None:
    with pytest.raises(ValueError, match="takes images of 1024x768 pixels: give an image_size"):
        preprocessing("vit_base_patch16_sapiens2.fb")
    assert preprocessing("vit_base_patch16_sapiens2.fb", 512).image_size == 512


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "image_size must be >= 1, got 0"),
        ({"crop_pct": 1.2}, r"crop_pct must be in \(0, 1\], got 1.2"),
        ({"crop_pct": 0.0}, r"crop_pct must be in \(0, 1\], got 0.0"),
        ({"mean": (0.5,)}, r"mean must have 3 channels, got \[0.5\]"),
        ({"std": (0.2, 0.2, 0.0)}, r"std must be > 0, got \[0.2, 0.2, 0.0\]"),
    ],
)
def test_bad_preprocessing_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preprocessing(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": (0.5, 0.2)}, r"scale must be an ascending range in \(0, 1\], got \[0.5, 0.2\]"),
        ({"ratio": (0.0, 2.0)}, r"ratio must be an ascending range of numbers > 0, got \[0.0, 2.0\]"),
        ({"hflip": 1.5}, r"hflip must be a probability in \[0, 1\], got 1.5"),
        ({"color_jitter": -0.4}, "color_jitter must be >= 0, got -0.4"),
        (
            {"auto_augment": "rand-m9", "color_jitter": 0.4},
            "color_jitter must be null with auto_augment 'rand-m9', got 0.4",
        ),
        ({"auto_augment": "random"}, "auto_augment must be a policy of timm, such as .*, got 'random'"),
        ({"auto_augment": "rand-x9"}, "auto_augment must be a policy of timm, such as .*, got 'rand-x9'"),
    ],
)
def test_bad_augmentation_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_transform(Preprocessing(), **arguments)


def test_three_augment_takes_colour_jitter() -> None:
    transform = train_transform(Preprocessing(16), auto_augment="3a", color_jitter=0.3)
    assert NamedTransform(transform, 0)(NOISE, 0, 0).shape == (3, 16, 16)


def test_evaluation_crops_the_centre_of_the_resized_image() -> None:
    # shorter side 40 -> 10 pixels, centre 8 x 8: corners of the image are not seen, its centre is
    image = Image.new("RGB", (40, 40))
    image.paste((255, 255, 255), (4, 4, 36, 36))
    view = eval_transform(Preprocessing(8, 0.8, interpolation="nearest"))(image)
    assert view.shape == (3, 8, 8)
    assert bool((view == 255).all())


@pytest.mark.parametrize(("bits", "kept"), [(8, 0xFF), (4, 0xF0), (1, 0x80), (0, 0x00), (-2, 0x00)])
def test_posterize_keeps_the_highest_bits(bits: int, kept: int) -> None:
    assert np.array_equal(np.asarray(posterize(NOISE, bits, fill=1)), np.asarray(NOISE) & kept)


@pytest.mark.parametrize("policy", ["rand-m10-n8-p1-inc1", "augmix-m15-mstd1-w1-d4", "v0"])
def test_policies_may_posterize_to_nothing(policy: str) -> None:
    named = NamedTransform(train_transform(Preprocessing(16), auto_augment=policy), 0)
    views = torch.stack([named(NOISE, index, 0) for index in range(60)])
    assert views.shape == (60, 3, 16, 16)
