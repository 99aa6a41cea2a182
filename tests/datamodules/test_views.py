"""Views against a slow implementation of their own, and what they may not depend on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chisquare
from torch import Tensor

from kd_lightning.datamodules.rand_augment import RandAugment
from kd_lightning.datamodules.resized_crop import ResizedCrop
from kd_lightning.datamodules.views import (
    PLAIN,
    View,
    crop,
    cutout,
    normalise,
    pack,
    scale_and_shift,
    unpack,
    view_key,
)
from kd_lightning.seeds import below, hashed

COUNT, HEIGHT, WIDTH = 60, 8, 6
MEAN, STD = {1: (0.4,), 3: (0.5, 0.25, 0.1)}, {1: (0.2,), 3: (0.5, 0.25, 0.3)}
UNLIKELY = 1e-4
VIEWS = [
    PLAIN,
    View(),
    View(crop_padding=2, flip=False),
    View(crop_padding=0, flip=True),
    View(crop_padding=1, cutout=3),
    View(crop_padding=0, flip=False, cutout=4),
]
RESIZED = View(0, cutout=2, resized_crop=ResizedCrop((0.1, 1.0), size=5))
OTHERS = [View(rand_augment=RandAugment()), RESIZED]


def noise(channels: int, count: int = COUNT) -> Tensor:
    shape = (count, HEIGHT, WIDTH, channels)
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def keys(index: Tensor, seed: int = 0, name: str = "default", number: int = 0) -> Tensor:
    return view_key(seed, name, index, torch.full_like(index, number))


def made(view: View, images: Tensor, key: Tensor) -> Tensor:
    channels = images.shape[3]
    return view.make(pack(images), key, channels, *scale_and_shift(MEAN[channels], STD[channels]))


def slowly(view: View, image: NDArray[np.uint8], key: Tensor) -> NDArray[np.float64]:
    """One view with slices, in float64, ``[C, H, W]``."""
    span, channels = 2 * view.crop_padding + 1, image.shape[2]
    top, left = divmod(int(below(span**2, key, "crop")), span)
    edge = (view.crop_padding, view.crop_padding)
    pixels = np.pad(image, (edge, edge, (0, 0)))[top : top + HEIGHT, left : left + WIDTH]
    if view.flip and int(hashed(key, "flip")) % 2:
        pixels = pixels[:, ::-1]
    values = (pixels / 255 - np.array(MEAN[channels])) / np.array(STD[channels])
    if view.cutout:
        y, x = divmod(int(below(HEIGHT * WIDTH, key, "cutout")), WIDTH)
        up, back = y - view.cutout // 2, x - view.cutout // 2
        values[max(up, 0) : max(up + view.cutout, 0), max(back, 0) : max(back + view.cutout, 0)] = 0
    return np.asarray(values.transpose(2, 0, 1), dtype=np.float64)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_view_by_slices(view: View, channels: int) -> None:
    images, key = noise(channels), keys(torch.arange(COUNT))
    wanted = np.stack([slowly(view, image, one) for image, one in zip(images.numpy(), key, strict=True)])
    torch.testing.assert_close(made(view, images, key).double(), torch.from_numpy(wanted), rtol=0, atol=2e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_view_is_float32_and_channels_last(view: View, channels: int) -> None:
    result = made(view, noise(channels), keys(torch.arange(COUNT)))
    assert result.shape == (COUNT, channels, HEIGHT, WIDTH)
    assert result.dtype == torch.float32
    assert result.stride() == (HEIGHT * WIDTH * channels, 1, WIDTH * channels, channels)


@pytest.mark.parametrize("view", [*VIEWS, *OTHERS], ids=str)
def test_view_does_not_depend_on_the_rest_of_the_batch(view: View) -> None:
    images, key = noise(3), keys(torch.arange(COUNT))
    whole = made(view, images, key)
    some = torch.tensor([41, 3, 17, 3])
    assert torch.equal(made(view, images[some], key[some]), whole[some])
    assert torch.equal(made(view, images[5:6], key[5:6]), whole[5:6])


@pytest.mark.parametrize("view", [*VIEWS, *OTHERS], ids=str)
def test_view_of_no_images(view: View) -> None:
    size = (5, 5) if view.resized_crop else (HEIGHT, WIDTH)
    assert made(view, noise(3, 0), keys(torch.arange(0))).shape == (0, 3, *size)


@pytest.mark.parametrize("view", [*VIEWS, *OTHERS], ids=str)
def test_view_draws_from_no_generator_and_leaves_the_images_alone(view: View) -> None:
    images, state = noise(3), torch.get_rng_state()
    first = made(view, images, keys(torch.arange(COUNT)))
    torch.manual_seed(99)
    assert torch.equal(first, made(view, images, keys(torch.arange(COUNT))))
    assert torch.equal(images, noise(3))
    torch.set_rng_state(state)
    made(view, images, keys(torch.arange(COUNT)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("view", [*VIEWS, RESIZED], ids=str)
def test_view_is_the_same_on_a_gpu(view: View) -> None:
    images, key = noise(3), keys(torch.arange(COUNT))
    scale, shift = (part.cuda() for part in scale_and_shift(MEAN[3], STD[3]))
    there = view.make(pack(images).cuda(), keys(torch.arange(COUNT).cuda()), 3, scale, shift)
    assert torch.equal(there.cpu(), made(view, images, key))


@pytest.mark.parametrize("other", [{"seed": 1}, {"name": "peer"}, {"number": 1}], ids=str)
@pytest.mark.parametrize("view", [View(), View(0, False, cutout=2), *OTHERS], ids=str)
def test_each_part_of_the_name_gives_another_view(view: View, other: dict[str, Any]) -> None:
    index = torch.arange(COUNT)
    images = noise(3)[:1].expand(COUNT, -1, -1, -1)
    first, second = made(view, images, keys(index)), made(view, images, keys(index, **other))
    differ = (first != second).flatten(1).any(1).float().mean()
    assert differ > 0.5
    assert (first[1:] != first[:1]).flatten(1).any(1).float().mean() > 0.5


def test_crops_and_mirror_images_are_uniform() -> None:
    count, padding = 20_000, 2
    numbered = torch.arange(1, 37, dtype=torch.uint8).reshape(1, 6, 6, 1).expand(count, -1, -1, -1)
    view = View(crop_padding=padding).make(
        pack(numbered), keys(torch.arange(count)), 1, torch.tensor([1.0]), torch.tensor([0.0])
    )
    here, right = view[:, 0, 2, 2].long() - 1, view[:, 0, 2, 3].long() - 1
    flipped = right < here
    row, column = here // 6, here % 6
    top, left = row - 2 + padding, torch.where(flipped, column - 3, column - 2) + padding
    cells = torch.bincount((top * 5 + left) * 2 + flipped, minlength=50)
    assert len(cells) == 50
    assert chisquare(cells).pvalue > UNLIKELY


def test_cutout_centres_are_uniform() -> None:
    count = 20_000
    white = torch.full((1, 5, 4, 1), 255, dtype=torch.uint8).expand(count, -1, -1, -1)
    view = View(0, False, cutout=1).make(pack(white), keys(torch.arange(count)), 1, torch.ones(1), torch.zeros(1))
    holes = (view == 0).flatten(1)
    assert torch.equal(holes.sum(1), torch.ones(count, dtype=torch.int64))
    assert chisquare(holes.sum(0)).pvalue > UNLIKELY


def test_crop_by_hand() -> None:
    image = torch.tensor([[[1, 2], [3, 4]]], dtype=torch.uint8)

    def one(top: int, left: int, flip: bool, padding: int = 1) -> list[list[int]]:
        found: list[list[int]] = crop(image, torch.tensor([top]), torch.tensor([left]), torch.tensor([flip]), padding)[
            0
        ].tolist()
        return found

    assert one(1, 1, False) == [[1, 2], [3, 4]]
    assert one(1, 1, True) == [[2, 1], [4, 3]]
    assert one(0, 0, False) == [[0, 0], [0, 1]]
    assert one(0, 0, True) == [[0, 0], [1, 0]]
    assert one(2, 1, False) == [[3, 4], [0, 0]]
    assert one(0, 0, True, padding=0) == [[2, 1], [4, 3]]


def test_cutout_by_hand() -> None:
    def holes(y: int, x: int, side: int) -> list[list[int]]:
        cut: Tensor = cutout(torch.ones(1, 2, 4, 4), torch.tensor([y]), torch.tensor([x]), side)
        assert torch.equal(cut[:, 0], cut[:, 1])
        return (1 - cut[0, 0]).int().tolist()

    assert holes(2, 1, 2) == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert holes(0, 3, 2) == [[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert holes(3, 3, 3) == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert holes(1, 1, 9) == [[1, 1, 1, 1]] * 4


def test_normalise_by_hand() -> None:
    images = torch.tensor([[[[0, 255, 51]]]], dtype=torch.uint8)
    result = normalise(images, *scale_and_shift((0.5, 0.5, 0.1), (0.5, 0.25, 0.2)))
    assert result.flatten().tolist() == pytest.approx([-1.0, 2.0, 0.5], abs=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("layout", [lambda x: x, lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)])
def test_packing_keeps_every_byte(channels: int, layout: Callable[[Tensor], Tensor]) -> None:
    images = layout(noise(channels))
    packed = pack(images)
    assert packed.shape == (COUNT, HEIGHT, WIDTH)
    assert packed.dtype == (torch.uint8 if channels == 1 else torch.int32)
    assert torch.equal(unpack(packed, channels), images)


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (torch.zeros(2, 4, 4, 5, dtype=torch.uint8), r"torch.uint8 \[2, 4, 4, 5\]"),
        (torch.zeros(2, 4, 4, 0, dtype=torch.uint8), r"torch.uint8 \[2, 4, 4, 0\]"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), r"torch.uint8 \[2, 4, 4\]"),
        (torch.zeros(2, 4, 4, 3), r"torch.float32 \[2, 4, 4, 3\]"),
    ],
)
def test_what_cannot_be_packed(images: Tensor, got: str) -> None:
    with pytest.raises(ValueError, match=rf"^images must be uint8 \[N, H, W, C\] with 1 to 4 channels, got {got}$"):
        pack(images)


def test_negative_length() -> None:
    with pytest.raises(ValueError, match=r"^crop_padding must be >= 0 pixels, got -1$"):
        View(crop_padding=-1)
    with pytest.raises(ValueError, match=r"^cutout must be >= 0 pixels, got -2$"):
        View(cutout=-2)
