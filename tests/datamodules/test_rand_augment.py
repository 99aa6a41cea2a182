"""The operations against torchvision's own RandAugment, and how they are drawn."""

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandAugment as TorchvisionRandAugment

from kd_lightning.datamodules.rand_augment import MAX_MAGNITUDE, OPS, SIGNED, UNSIGNED, RandAugment, change
from kd_lightning.seeds import hashed

NAMES = {op: "".join(word.capitalize() for word in op.split("_")) for op in OPS}
UNLIKELY = 1e-4


def noise(count: int = 8, channels: int = 3) -> Tensor:
    coarse = torch.rand(count, channels, 8, 8, generator=torch.Generator().manual_seed(0)) * 200 + 20
    return torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear").to(torch.uint8)


def torchvisions(images: Tensor, op: str, magnitude: int, sign: int) -> Tensor:
    """The same operation as torchvision does it."""
    ranges, signed = TorchvisionRandAugment._AUGMENTATION_SPACE[NAMES[op]]
    levels = ranges(MAX_MAGNITUDE + 1, *images.shape[2:])
    level = 0.0 if levels is None else float(levels[magnitude])
    assert signed == (op in SIGNED)
    changed: Tensor = TorchvisionRandAugment()._apply_image_or_video_transform(
        images, NAMES[op], sign * level, InterpolationMode.NEAREST, {type(images): None}
    )
    return changed


def test_operations_are_torchvisions() -> None:
    assert set(NAMES.values()) == set(TorchvisionRandAugment._AUGMENTATION_SPACE)
    assert len(OPS) == 14


@pytest.mark.parametrize("magnitude", [0, 5, 9, 14, 30])
@pytest.mark.parametrize(
    ("op", "sign"), [(op, sign) for op in SIGNED for sign in (1, -1)] + [(op, 1) for op in UNSIGNED]
)
def test_operation_is_torchvisions(op: str, sign: int, magnitude: int) -> None:
    ours, theirs = change(noise(), op, sign * magnitude / MAX_MAGNITUDE), torchvisions(noise(), op, magnitude, sign)
    assert ours.dtype == torch.uint8
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= 1, "their ranges are in float32, so a value may round to the other side"
    assert (difference > 0).float().mean() < 0.01


@pytest.mark.parametrize("op", [op for op in OPS if op != "identity"])
def test_operation_does_something(op: str) -> None:
    assert not torch.equal(change(noise(), op, 0.5), noise())


def test_identity_does_nothing() -> None:
    assert torch.equal(change(noise(), "identity", 0.5), noise())


def test_operations_and_signs_are_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    def mark(images: Tensor, op: str, strength: float) -> Tensor:
        return torch.full_like(images, 2 * OPS.index(op) + (strength < 0))

    monkeypatch.setattr("kd_lightning.datamodules.rand_augment.change", mark)
    drawn = RandAugment(num_ops=1).apply(
        torch.zeros(20_000, 1, 1, 1, dtype=torch.uint8), hashed(0, torch.arange(20_000))
    )
    cells = torch.bincount(drawn.flatten(), minlength=28).reshape(14, 2)
    assert chisquare(cells.sum(1)).pvalue > UNLIKELY
    assert chisquare(cells[: len(SIGNED)].flatten()).pvalue > UNLIKELY
    assert cells[len(SIGNED) :, 1].sum() == 0


def test_operations_of_a_view_follow_each_other_and_are_drawn_independently(monkeypatch: pytest.MonkeyPatch) -> None:
    def count_in_base_14(images: Tensor, op: str, strength: float) -> Tensor:
        return images * 14 + OPS.index(op)

    monkeypatch.setattr("kd_lightning.datamodules.rand_augment.change", count_in_base_14)
    drawn = RandAugment(num_ops=2).apply(
        torch.zeros(20_000, 1, 1, 1, dtype=torch.uint8), hashed(0, torch.arange(20_000))
    )
    assert chisquare(torch.bincount(drawn.flatten(), minlength=196)).pvalue > UNLIKELY


def test_stronger_changes_more() -> None:
    def distance(magnitude: int) -> float:
        changed = RandAugment(magnitude=magnitude).apply(noise(64), hashed(0, torch.arange(64)))
        return float((changed.float() - noise(64).float()).abs().mean())

    assert distance(2) < distance(9) < distance(30)


def test_grey_images() -> None:
    changed = RandAugment().apply(noise(64, channels=1), hashed(0, torch.arange(64)))
    assert changed.shape == (64, 1, 32, 32)
    assert not torch.equal(changed, noise(64, channels=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_ops": 0}, r"^rand_augment.num_ops must be >= 1, got 0 \(rand_augment: null for none\)$"),
        ({"magnitude": 31}, r"^rand_augment.magnitude must be in 0 … 30, got 31$"),
        ({"magnitude": -1}, r"^rand_augment.magnitude must be in 0 … 30, got -1$"),
    ],
)
def test_faults(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandAugment(**options)
