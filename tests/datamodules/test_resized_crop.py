"""Resized crops against torchvision's, one by one, and against the ranges that they are drawn from."""

import math
from typing import Any

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from kd_lightning.batch import Batch
from kd_lightning.datamodules import DigitsDataModule, Mixing
from kd_lightning.datamodules.resized_crop import ResizedCrop, largest_box, resized_crop
from kd_lightning.datamodules.views import View, pack, scale_and_shift, view_key

UNLIKELY = 1e-4
SHAPES = [(32, 32, 32), (32, 32, 20), (32, 32, 7), (8, 8, 6), (20, 40, 16), (6, 5, 40), (1, 1, 3)]


def noise(height: int, width: int, channels: int = 3, count: int = 64) -> Tensor:
    shape = (count, height, width, channels)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def keys(count: int, number: int = 0) -> Tensor:
    return view_key(0, "crop", torch.arange(count), torch.full((count,), number))


@pytest.mark.parametrize(("height", "width", "size"), SHAPES)
def test_it_is_torchvisions(height: int, width: int, size: int) -> None:
    images, box = noise(height, width), ResizedCrop((0.05, 1.0)).draw(keys(64), height, width)
    floats, bytes_ = (resized_crop(given, box, (size, size)) for given in (images.float(), images))
    assert (floats.dtype, bytes_.dtype) == (torch.float32, torch.uint8)
    for row, (top, left, rows, columns) in enumerate(box.T.tolist()):
        image = images[row].permute(2, 0, 1)
        wanted = V.resized_crop(image.float(), top, left, rows, columns, [size, size], antialias=True)
        torch.testing.assert_close(floats[row].permute(2, 0, 1), wanted, rtol=0, atol=1e-3)  # of 255
        wanted = V.resized_crop(image, top, left, rows, columns, [size, size], antialias=True)  # in fixed point
        torch.testing.assert_close(bytes_[row].permute(2, 0, 1), wanted, rtol=0, atol=1)


def test_a_value_by_hand() -> None:
    image = torch.tensor([[0.0, 0.0, 0.0, 9.0], [9.0, 4.0, 8.0, 9.0]])[None, :, :, None]
    box = torch.tensor([[1], [1], [1], [2]])  # 4 and 8
    assert resized_crop(image, box, (1, 4)).flatten().tolist() == [4.0, 5.0, 7.0, 8.0]
    whole = torch.tensor(
        [[0], [0], [1], [4]]
    )  # triangles as wide as two pixels: (3, 3, 1) / 7 of 0, 0, 0; 9 after 0, 0
    assert resized_crop(image, whole, (1, 2)).flatten().tolist() == pytest.approx([0.0, 27 / 7])


def test_the_whole_image_in_its_own_size_is_itself() -> None:
    images = noise(7, 9)
    box = torch.tensor([0, 0, 7, 9])[:, None].expand(-1, 64)
    assert torch.equal(resized_crop(images, box, (7, 9)), images)
    assert torch.equal(ResizedCrop((1.0, 1.0), (9 / 7, 9 / 7)).apply(images, keys(64)), images)


def test_boxes_are_inside_and_areas_and_shapes_are_uniform() -> None:
    height, width, count = 500, 700, 20_000
    box = ResizedCrop((0.1, 0.4), (0.5, 2.0)).draw(keys(count), height, width)
    assert box.dtype == torch.int64
    top, left, rows, columns = box.double()
    assert top.min() == left.min() == 0
    assert ((top + rows).max(), (left + columns).max()) == (height, width)
    area, ratio = rows * columns / (height * width), columns / rows
    assert 0.099 < area.min() < 0.101  # rounded to pixels
    assert 0.399 < area.max() < 0.402
    assert 0.49 < ratio.min() < 0.51
    assert 1.96 < ratio.max() < 2.04
    top, left, rows, columns = ResizedCrop((0.1, 0.4)).draw(keys(count), 4000, 4000).double()
    area, ratio = rows * columns / 4000**2, (columns / rows).log() / math.log(4 / 3)
    assert kstest((area - 0.1) / 0.3, "uniform").pvalue > UNLIKELY
    assert kstest((ratio + 1) / 2, "uniform").pvalue > UNLIKELY
    assert abs(torch.corrcoef(torch.stack([area, ratio]))[0, 1]) < 0.03
    for start, length in ((top, rows), (left, columns)):
        assert kstest((start + 0.5) / (4000 - length + 1), "uniform").pvalue > UNLIKELY


def test_a_box_that_never_fits_is_the_largest_in_the_middle() -> None:
    crop = ResizedCrop((1.0, 1.0), (3.0, 3.0))
    assert crop.draw(keys(1), 30, 30).flatten().tolist() == [10, 0, 10, 30]
    crop = ResizedCrop((1.0, 1.0), (1 / 3, 1 / 3))
    assert crop.draw(keys(1), 30, 30).flatten().tolist() == [0, 10, 30, 10]
    assert largest_box(30, 40, (0.75, 4 / 3)) == (30, 40)


def test_views_are_smaller_flipped_and_cut_out_at_their_own_size() -> None:
    images, key = noise(8, 8, 1), keys(64)
    scaling = scale_and_shift((0.5,), (0.5,))
    crop = ResizedCrop((0.2, 0.6), size=5)
    plain = View(0, False, resized_crop=crop).make(pack(images), key, 1, *scaling)
    assert plain.shape == (64, 1, 5, 5)
    torch.testing.assert_close(plain, crop.apply(images, key).permute(0, 3, 1, 2) / 127.5 - 1)
    flipped = View(0, True, resized_crop=crop).make(pack(images), key, 1, *scaling)
    same, mirrored = (flipped == plain).flatten(1).all(1), (flipped == plain.flip(3)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 16 < int(mirrored.sum()) < 48
    holes = View(0, False, cutout=1, resized_crop=crop).make(pack(images), key, 1, *scaling) != plain
    assert torch.equal(holes.flatten(1).sum(1), torch.ones(64, dtype=torch.int64))
    assert holes.any(0).sum() > 16  # of 25


def test_a_batch_holds_views_of_several_sizes() -> None:
    views = {"default": View(0, False, resized_crop=ResizedCrop((0.5, 1.0)))}
    views |= {"local": View(0, False, resized_crop=ResizedCrop((0.2, 0.5), size=6))}
    data = DigitsDataModule(64, views=views, mixing=Mixing(cutmix_alpha=1.0))
    data.setup("fit")
    batch = next(iter(data.loader("train", data.plan("train", True), torch.device("cpu"))))
    assert {name: tuple(image.shape) for name, image in batch.images.items()} == {
        "default": (64, 1, 8, 8),
        "local": (64, 1, 6, 6),
    }
    shown = next(iter(data.val_dataloader()))  # the images as they are
    assert isinstance(shown, Batch)
    assert torch.equal(shown.images["local"], shown.image)
    assert data.image_shape == (1, 8, 8)


def test_numbers_give_other_boxes() -> None:
    first, second = (ResizedCrop().draw(keys(64, number), 224, 224) for number in (0, 1))
    assert not (first == second).all(0).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (0.0, 1.0)}, r"resized_crop\.scale must be two shares in \(0, 1\], .*, got \[0\.0, 1\.0\]"),
        ({"scale": (0.5, 0.4)}, r"resized_crop\.scale must be .*, the smaller first, got \[0\.5, 0\.4\]"),
        ({"scale": (0.5, 1.1)}, r"resized_crop\.scale must be .*, got \[0\.5, 1\.1\]"),
        ({"ratio": (0.0, 1.0)}, r"resized_crop\.ratio must be two numbers > 0, .*, got \[0\.0, 1\.0\]"),
        ({"ratio": (2.0, 1.0)}, r"resized_crop\.ratio must be .*, got \[2\.0, 1\.0\]"),
        ({"size": 0}, r"resized_crop\.size must be >= 1 pixel, or null for the image's own, got 0"),
    ],
)
def test_faults(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResizedCrop(**options)


def test_one_kind_of_crops() -> None:
    with pytest.raises(ValueError, match=r"^crop_padding must be 0 beside a resized_crop, got 4$"):
        View(resized_crop=ResizedCrop())
