"""Crops that are drawn before the image is decoded are timm's, to a level of colour here and there."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose

from kd_lightning.datamodules import ImageFolderDataModule, decoded_views
from kd_lightning.datamodules.decoded_views import CropFirst, Decoded, resized
from kd_lightning.datamodules.decoding import by_pillow, decode
from kd_lightning.datamodules.encoded import BadImageError, Encoded
from kd_lightning.datamodules.named_transform import NamedTransform
from kd_lightning.datamodules.timm_transforms import Preprocessing, eval_transform, train_transform

SIZE = 32


def image(width: int, height: int, kind: str = "JPEG", seed: int = 0) -> Encoded:
    """Smooth noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(file, kind)
    return Encoded(file.getvalue(), "x")


def views(transform: Any, encoded: Encoded) -> Tensor:
    """Eight named views, int64 ``[8, 3, S, S]``."""
    named: NamedTransform[Encoded] = NamedTransform(transform, 3)
    return torch.stack([named(encoded, 7, number) for number in range(8)]).long()


def timms(**options: Any) -> Compose:
    transform = train_transform(Preprocessing(SIZE, interpolation=options.pop("interpolation", "bilinear")), **options)
    assert isinstance(transform, Compose)
    return transform


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
@pytest.mark.parametrize("size", [(120, 90), (20, 31)], ids=["smaller", "larger"])
def test_views_are_timms(interpolation: str, size: tuple[int, int]) -> None:
    transform, encoded = timms(interpolation=interpolation), image(*size)
    ours, theirs = views(CropFirst(transform), encoded), views(Decoded(transform), encoded)
    assert (ours - theirs).abs().max() <= (2 if interpolation in ("bilinear", "bicubic") else 0)
    assert (ours - theirs).abs().float().mean() < 0.1
    assert (ours[0] - ours[1]).abs().float().mean() > 1


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "augmix-m3-w3", "original"])
def test_policies_get_the_same_draws(policy: str) -> None:
    # both crop by Pillow, so that the policies have the very same pixels
    transform, encoded = timms(auto_augment=policy, interpolation="nearest"), image(64, 48)
    assert torch.equal(views(CropFirst(transform), encoded), views(Decoded(transform), encoded))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_pillow_decodes_is_cropped_alike(kind: str) -> None:
    encoded = image(90, 70, kind)
    difference = views(CropFirst(timms()), encoded) - views(Decoded(timms()), encoded)
    assert difference.abs().max() <= 2


def test_the_evaluation_is_pillows_to_the_bit() -> None:
    transform = eval_transform(Preprocessing(SIZE))
    encoded = image(90, 70)
    assert torch.equal(Decoded(transform)(encoded), transform(Image.fromarray(by_pillow(encoded))))


def decoded_sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    sizes = []

    def watched(*arguments: Any) -> Any:
        sizes.append((pixels := decode(*arguments)).shape[:2])
        return pixels

    monkeypatch.setattr(decoded_views, "decode", watched)
    return sizes


def test_scaled_decodes_no_more_than_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    transform, encoded = timms(), image(480, 360)
    full = views(CropFirst(transform), encoded)
    sizes = decoded_sizes(monkeypatch)
    scaled = views(CropFirst(transform, "scaled"), encoded)
    assert {(90, 120), (45, 60)} <= set(sizes) <= {(360, 480), (180, 240), (90, 120), (45, 60)}
    assert (scaled - full).abs().float().mean() < 2
    assert not torch.equal(scaled, full)


def test_scaled_leaves_small_images_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    transform, encoded = timms(), image(60, 40)
    full = views(CropFirst(transform), encoded)
    sizes = decoded_sizes(monkeypatch)
    assert torch.equal(views(CropFirst(transform, "scaled"), encoded), full)
    assert set(sizes) == {(40, 60)}


def test_a_crop_of_a_scaled_image_is_where_it_was() -> None:
    # A ramp: a shift by a pixel of the full size would be seen as a shift of the values.
    # The sizes are no multiples of 8, so that the last column of a scaled image is of fewer pixels than the others.
    ramp = np.linspace(0, 255, 505)
    down = np.broadcast_to(ramp[:, None, None], (505, 505, 3)).astype(np.uint8)
    for pixels in (down, down.swapaxes(0, 1)):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=100, subsampling=0)
        encoded, transform = Encoded(file.getvalue(), "x"), timms(hflip=0.0)
        full, scaled = (views(CropFirst(transform, mode), encoded).float() for mode in ("full", "scaled"))
        assert not torch.equal(full, scaled)
        assert (full - scaled).mean((1, 2, 3)).abs().max() < 0.6


def test_a_part_of_whole_pixels_is_resized_by_torch_and_any_other_by_pillow() -> None:
    crop = timms().transforms[0]
    pixels = decode(image(60, 40))
    whole = resized(pixels, (10, 5, 50, 35), (SIZE, SIZE), crop.interpolation)
    near = resized(pixels, (10 + 1e-6, 5, 50, 35), (SIZE, SIZE), crop.interpolation)
    assert whole.shape == near.shape == (3, SIZE, SIZE)
    assert whole.permute(1, 2, 0).is_contiguous()
    assert near.permute(1, 2, 0).is_contiguous()
    assert (whole.long() - near.long()).abs().max() <= 1


@pytest.mark.parametrize("mode", ["full", "scaled"])
def test_a_bad_image_is_named(mode: Any) -> None:
    whole = image(480, 360)
    for data in (whole.data[: len(whole.data) // 2], b"<html>"):
        with pytest.raises(BadImageError, match="^cannot decode image bad: "):
            CropFirst(timms(), mode)(Encoded(data, "bad"))


def test_other_transforms_are_refused() -> None:
    with pytest.raises(TypeError, match="must begin with a random resized crop, got CenterCrop"):
        CropFirst(Compose([CenterCrop(4)]))


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="decode must be 'full' or 'scaled', got 'half'"):
        ImageFolderDataModule("nowhere", decode="half")  # type: ignore[arg-type]
