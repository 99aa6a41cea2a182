"""Views of a batch equal views of its samples one by one, and their draws are uniform."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest, chisquare
from torch import Tensor
from torchvision.transforms import v2

from kd_lightning.datamodules.rand_augment import OPS, SIGNED, RandAugment, change
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

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
UNLIKELY = 1e-4  # no draw is repeated, so a test either always holds or never does
MAGNITUDE = 9
TORCHVISION = {  # the names of the operations there
    "identity": "Identity",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "color": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "auto_contrast": "AutoContrast",
    "equalize": "Equalize",
}


def noise(count: int, height: int = 9, width: int = 7, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, height, width, channels), dtype=torch.uint8)


def make(view: View, images: Tensor, key: Tensor) -> Tensor:
    """Views of uint8 images, normalised by the first of `MEAN` and `STD`."""
    channels = images.shape[3]
    return view.make(pack(images), key, channels, *scale_and_shift(MEAN[:channels], STD[:channels]))


def one_by_one(view: View, images: Tensor, key: Tensor) -> NDArray[np.float64]:
    """What a view is, sample by sample, in numpy, from the drawn numbers."""
    made = []
    for image, name in zip(images.numpy(), key, strict=True):
        height, width, channels = image.shape
        span = 2 * view.crop_padding + 1
        top, left = divmod(int(below(span * span, name, "crop")), span)
        pad = (view.crop_padding, view.crop_padding)
        cut = np.pad(image, (pad, pad, (0, 0)))[top : top + height, left : left + width]
        if view.flip and int(hashed(name, "flip")) % 2:
            cut = np.fliplr(cut)
        normal = (cut / 255 - np.array(MEAN[:channels])) / np.array(STD[:channels])
        if view.cutout:
            center_y, center_x = divmod(int(below(height * width, name, "cutout")), width)
            top, left = center_y - view.cutout // 2, center_x - view.cutout // 2
            normal[max(top, 0) : max(top + view.cutout, 0), max(left, 0) : max(left + view.cutout, 0)] = 0
        made.append(normal.transpose(2, 0, 1))
    return np.stack(made)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_unpack_is_the_inverse_of_pack(channels: int) -> None:
    images = noise(5, channels=channels)
    packed = pack(images)
    assert packed.shape == (5, 9, 7)
    assert packed.dtype == (torch.uint8 if channels == 1 else torch.int32)
    assert torch.equal(unpack(packed, channels), images)


def test_pack_takes_any_memory_layout() -> None:
    images = noise(5).permute(0, 2, 1, 3)
    assert torch.equal(unpack(pack(images), 3), images)


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (torch.zeros(2, 3, 3, 3), r"torch.float32 \[2, 3, 3, 3\]"),
        (torch.zeros(2, 3, 3, dtype=torch.uint8), r"torch.uint8 \[2, 3, 3\]"),
        (torch.zeros(2, 3, 3, 5, dtype=torch.uint8), r"torch.uint8 \[2, 3, 3, 5\]"),
        (torch.zeros(2, 3, 3, 0, dtype=torch.uint8), r"torch.uint8 \[2, 3, 3, 0\]"),
    ],
)
def test_what_cannot_be_packed(images: Tensor, got: str) -> None:
    with pytest.raises(ValueError, match=rf"^images must be uint8 \[N, H, W, C\] with 1 to 4 channels, got {got}$"):
        pack(images)


def test_crop_by_hand() -> None:
    image = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).expand(4, 2, 2)
    top, left = torch.tensor([1, 0, 2, 1]), torch.tensor([1, 0, 1, 0])
    cut = crop(image, top, left, torch.tensor([False, False, False, True]), 1)
    assert cut.tolist() == [[[1, 2], [3, 4]], [[0, 0], [0, 1]], [[3, 4], [0, 0]], [[1, 0], [3, 0]]]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "view",
    [
        View(),
        View(crop_padding=2, flip=False),
        View(crop_padding=0),
        View(cutout=4),
        View(crop_padding=1, cutout=3),
        View(crop_padding=0, flip=False, cutout=30),
        View(crop_padding=12),
        PLAIN,
    ],
    ids=str,
)
def test_view_of_a_batch_is_that_of_its_samples_one_by_one(view: View, channels: int) -> None:
    images, key = noise(60, channels=channels), view_key(3, "default", torch.arange(60), torch.tensor(2))
    made = make(view, images, key)
    assert made.dtype == torch.float32
    assert made.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(made.numpy(), one_by_one(view, images, key), atol=2e-6)


def test_plain_view_is_the_image() -> None:
    images = noise(3)
    expected = v2.functional.normalize(images.permute(0, 3, 1, 2) / 255, MEAN, STD)
    torch.testing.assert_close(make(PLAIN, images, torch.arange(3)), expected, atol=2e-6, rtol=0)


def test_normalise_takes_mean_to_zero_and_a_deviation_to_one() -> None:
    images = torch.tensor([51, 102], dtype=torch.uint8).view(1, 1, 2, 1)
    found = normalise(images, *scale_and_shift([0.2], [0.2]))
    assert found.flatten().tolist() == pytest.approx([0, 1], abs=1e-6)


def test_offsets_and_mirror_images_are_uniform() -> None:
    count, size, padding = 30_000, 8, 2
    image = torch.arange(1, 65, dtype=torch.uint8).view(1, size, size, 1).expand(count, -1, -1, -1)
    key = view_key(0, "default", torch.arange(count), torch.tensor(1))
    view = View(crop_padding=padding).make(pack(image), key, 1, torch.ones(1), torch.zeros(1))
    flipped = view[:, 0, 4, 3] > view[:, 0, 4, 4]
    value = torch.where(flipped, view[:, 0, 4, 3], view[:, 0, 4, 4]).long() - 1  # what lies at (4, 4) before mirroring
    top, left = value // size - 4 + padding, value % size - 4 + padding
    assert set(top.tolist()) == set(left.tolist()) == set(range(5))
    counts = torch.bincount((top * 5 + left) * 2 + flipped, minlength=50)
    assert chisquare(counts).pvalue > UNLIKELY
    assert binomtest(int(flipped.sum()), count, 0.5).pvalue > UNLIKELY


def test_view_is_the_same_in_any_batch() -> None:
    images, key = noise(40), view_key(0, "default", torch.arange(40), torch.tensor(0))
    view = View(cutout=3, rand_augment=RandAugment())
    whole, order = make(view, images, key), torch.randperm(40)
    assert torch.equal(make(view, images[order], key[order]), whole[order])
    assert torch.equal(make(view, images[7:8], key[7:8]), whole[7:8])


def test_view_leaves_the_images_as_they_are() -> None:
    packed = pack(noise(20))
    before = packed.clone()
    View(cutout=3, rand_augment=RandAugment()).make(packed, torch.arange(20), 3, *scale_and_shift(MEAN, STD))
    assert torch.equal(packed, before)


@pytest.mark.parametrize(
    ("other", "same"),
    [((0, "default", 0), True), ((0, "peer", 0), False), ((0, "default", 1), False), ((1, "default", 0), False)],
    ids=["itself", "name", "number", "seed"],
)
def test_view_is_a_function_of_its_name(other: tuple[int, str, int], same: bool) -> None:
    images, rows = noise(30), torch.arange(30)
    first = make(View(), images, view_key(0, "default", rows, torch.tensor(0)))
    second = make(View(), images, view_key(other[0], other[1], rows, torch.tensor(other[2])))
    equal = (first == second).flatten(1).all(1)
    assert bool(equal.all()) == same
    assert same or int(equal.sum()) <= 2  # 162 crops: 30 / 162 expected


def test_cutout_inside_has_its_whole_area() -> None:
    for side in (1, 2, 3, 4):
        image = cutout(torch.ones(1, 2, 9, 9), torch.tensor([4]), torch.tensor([4]), side)
        assert int((image == 0).sum()) == 2 * side * side


@pytest.mark.parametrize(
    ("center", "area"), [((0, 0), 4), ((0, 4), 8), ((8, 8), 9), ((8, 0), 6), ((4, 4), 16), ((7, 7), 16)]
)
def test_cutout_is_clipped_at_the_borders(center: tuple[int, int], area: int) -> None:
    image = cutout(torch.ones(1, 1, 9, 9), torch.tensor([center[0]]), torch.tensor([center[1]]), 4)
    assert int((image == 0).sum()) == area


def test_cutout_centres_are_uniform() -> None:
    count = 20_000
    images = torch.full((count, 6, 5, 1), 255, dtype=torch.uint8)
    key = view_key(0, "default", torch.arange(count), torch.tensor(0))
    holes = make(View(crop_padding=0, flip=False, cutout=1), images, key).flatten(1) == 0
    assert bool((holes.sum(1) == 1).all())
    assert chisquare(holes.sum(0)).pvalue > UNLIKELY


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_padding": -1}, r"^crop_padding must be >= 0 pixels, got -1$"),
        ({"cutout": -8}, r"^cutout must be >= 0 pixels, got -8$"),
    ],
)
def test_faults_of_a_view(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        View(**options)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("op", OPS)
def test_operation_is_torchvisions(op: str, sign: int) -> None:
    if sign < 0 and op not in SIGNED:
        return
    images = noise(6, 16, 16).permute(0, 3, 1, 2)
    theirs = v2.RandAugment()
    space, signed = theirs._AUGMENTATION_SPACE[TORCHVISION[op]]
    values = space(31, 16, 16)
    magnitude = 0.0 if values is None else float(values[MAGNITUDE]) * sign
    assert signed == (op in SIGNED)
    expected = theirs._apply_image_or_video_transform(
        images, TORCHVISION[op], magnitude, interpolation=theirs.interpolation, fill={}
    )
    assert torch.equal(change(images, op, sign * MAGNITUDE / 30), expected)


def test_operations_and_signs_have_equal_chances() -> None:
    drawn: dict[str, int] = {}

    def record(images: Tensor, op: str, strength: float) -> Tensor:
        drawn[f"{op}{strength:+}"] = drawn.get(f"{op}{strength:+}", 0) + len(images)
        return images

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kd_lightning.datamodules.rand_augment.change", record)
        RandAugment(num_ops=1, magnitude=30).apply(torch.zeros(28_000, 1, 1, 1), torch.arange(28_000))
    per_op = {op: drawn.get(f"{op}+1.0", 0) + drawn.get(f"{op}-1.0", 0) for op in OPS}
    assert chisquare(list(per_op.values())).pvalue > UNLIKELY
    assert {name[:-4] for name in drawn if name.endswith("-1.0")} == set(SIGNED)
    for op in SIGNED:
        assert binomtest(drawn[f"{op}+1.0"], per_op[op], 0.5).pvalue > UNLIKELY


def test_rand_augment_applies_as_many_operations_as_it_is_told() -> None:
    images, key = noise(30).permute(0, 3, 1, 2), view_key(0, "default", torch.arange(30), torch.tensor(0))
    expected = images.clone()
    for step in range(3):
        for row in range(30):
            op = OPS[int(below(14, key[row], "rand_augment op", step))]
            sign = -1 if op in SIGNED and int(hashed(key[row], "rand_augment sign", step)) % 2 else 1
            expected[row : row + 1] = change(expected[row : row + 1], op, sign * MAGNITUDE / 30)
    assert torch.equal(RandAugment(3, MAGNITUDE).apply(images, key), expected)
    assert not torch.equal(RandAugment(1, MAGNITUDE).apply(images, key), expected)


def test_rand_augment_takes_grey_images_and_none() -> None:
    images = noise(200, channels=1).permute(0, 3, 1, 2)
    assert RandAugment().apply(images, torch.arange(200)).shape == images.shape
    assert RandAugment().apply(images[:0], torch.arange(0)).shape == (0, 1, 9, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_ops": 0}, r"^rand_augment.num_ops must be >= 1, got 0 \(rand_augment: null for none\)$"),
        ({"magnitude": 31}, r"^rand_augment.magnitude must be in 0 … 30, got 31$"),
        ({"magnitude": -1}, r"^rand_augment.magnitude must be in 0 … 30, got -1$"),
    ],
)
def test_faults_of_rand_augment(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandAugment(**options)
