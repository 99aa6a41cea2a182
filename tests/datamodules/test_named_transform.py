"""Views are functions of their names, whatever the transform draws from."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from timm.data.transforms_factory import create_transform
from torch import Tensor

from kd_lightning.datamodules.named_transform import NamedErasing, NamedTransform, named_generators
from kd_lightning.seeds import hashed

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))


def timm_transform() -> Callable[[Image.Image], Tensor]:
    return create_transform(
        24, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", color_jitter=None, normalize=False
    )


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_each_generator_gets_a_seed_of_its_own_from_the_name() -> None:
    with named_generators(3, "default", 7, 1):
        inside = drawn()
    seeds = [int(hashed(3, "default", 7, 1, stream)) for stream in range(3)]
    expected = (
        random.Random(seeds[0]).random(),
        float(np.random.RandomState(seeds[1]).rand()),
        float(torch.rand((), generator=torch.Generator().manual_seed(seeds[2]))),
    )
    assert inside == expected
    assert len(set(seeds)) == 3


def test_outside_the_generators_are_as_they_were_even_after_an_error() -> None:
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    undisturbed = drawn()
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    with pytest.raises(RuntimeError, match="inside"), named_generators(0, "x"):
        drawn()
        raise RuntimeError("inside")
    assert drawn() == undisturbed


def test_numpy_can_be_left_out() -> None:
    np.random.seed(5)
    expected = float(np.random.rand())
    with named_generators(3, "default", 7, 1):
        first, _, third = drawn()
    np.random.seed(5)
    with named_generators(3, "default", 7, 1, numpy=False):
        assert drawn() == (first, expected, third)


def test_view_is_timms_under_the_same_seeds_by_hand() -> None:
    view = NamedTransform(timm_transform(), 3)(IMAGE, 7, 2)
    seeds = [int(hashed(3, "default", 7, 2, stream)) for stream in range(3)]
    random.seed(seeds[0]), np.random.seed(seeds[1]), torch.manual_seed(seeds[2])
    assert torch.equal(view, timm_transform()(IMAGE))
    assert view.dtype == torch.uint8
    assert view.shape == (3, 24, 24)


def test_view_does_not_depend_on_what_came_before() -> None:
    named = NamedTransform(timm_transform(), 3)
    names = [(index, number) for index in range(4) for number in range(3)]
    forwards = {name: named(IMAGE, *name) for name in names}
    drawn()
    backwards = {name: named(IMAGE, *name) for name in reversed(names)}
    assert all(torch.equal(forwards[name], backwards[name]) for name in names)


@pytest.mark.parametrize(
    ("seed", "view", "index", "number"),
    [(4, "default", 7, 2), (3, "peer", 7, 2), (3, "default", 8, 2), (3, "default", 7, 3)],
)
def test_every_part_of_the_name_makes_another_view(seed: int, view: str, index: int, number: int) -> None:
    transform = timm_transform()
    base = NamedTransform(transform, 3)(IMAGE, 7, 2)
    assert not torch.equal(base, NamedTransform(transform, seed, view)(IMAGE, index, number))


def erased(count: int, probability: float, mode: str = "const", seed: int = 5) -> Tensor:
    """Where ones are overwritten, bool ``[N, H, W]``."""
    images = torch.ones(count, 3, 16, 20)
    NamedErasing(probability, mode, seed)(images, torch.arange(count), torch.zeros(count, dtype=torch.int64))
    return (images != 1).any(1)


def test_erasing_writes_one_rectangle_of_2_to_33_percent() -> None:
    for mask in erased(50, 1.0, "pixel"):
        lines, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        height, width = int(lines[-1] - lines[0]) + 1, int(columns[-1] - columns[0]) + 1
        assert int(mask.sum()) == height * width
        assert 0.01 < height * width / 320 < 0.37  # sides are rounded to pixels


def test_erasing_is_timms_under_the_same_seeds_by_hand() -> None:
    images = torch.ones(1, 3, 16, 20)
    NamedErasing(1.0, "pixel", 5)(images, torch.tensor([9]), torch.tensor([2]))
    expected = torch.ones(3, 16, 20)
    random.seed(int(hashed(5, "default", 9, 2, "erasing", 0)))
    torch.manual_seed(int(hashed(5, "default", 9, 2, "erasing", 2)))
    RandomErasing(1.0, mode="pixel", device="cpu")(expected)
    assert torch.equal(images[0], expected)


def test_erasing_hits_the_asked_share_of_images() -> None:
    hit = int(erased(2000, 0.25).flatten(1).any(1).sum())
    assert abs(hit - 500) < 4 * (2000 * 0.25 * 0.75) ** 0.5
    assert not erased(200, 0.0).any()


def test_erasing_does_not_depend_on_the_batch() -> None:
    index, number = torch.tensor([4, 8, 15, 16]), torch.tensor([2, 3, 4, 2])
    together = NamedErasing(0.7, "pixel", 1)(torch.zeros(4, 3, 16, 16), index, number)
    for i in range(4):
        alone = NamedErasing(0.7, "pixel", 1)(torch.zeros(1, 3, 16, 16), index[i : i + 1], number[i : i + 1])
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("probability", [-0.1, 1.5])
def test_erasing_refuses_what_is_no_probability(probability: float) -> None:
    with pytest.raises(ValueError, match=rf"random_erasing must be a probability in \[0, 1\], got {probability}"):
        NamedErasing(probability, "const", 0)
