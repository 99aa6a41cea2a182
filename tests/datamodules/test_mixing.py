"""Mixup and CutMix by hand, and the distribution of what is drawn."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta
from torch import Tensor

from kd_lightning.datamodules.mixing import (
    Mixing,
    Shares,
    beta_quantile,
    cutmix,
    cutmix_box,
    mix,
    mix_targets,
    mixup,
)
from kd_lightning.seeds import hashed

IMAGE = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
PARTNER = torch.full((1, 1, 2, 2), 4.0)
DRAWS = 20_000


def numbers(*values: float) -> Tensor:
    return torch.tensor(values)


def drawn(mixing: Mixing, seed: int = 0) -> Shares:
    return mixing.draw(hashed(seed, "mixing", torch.arange(DRAWS), 0))


def test_mixup_by_hand() -> None:
    assert mixup(IMAGE, PARTNER, numbers(0.25)).flatten().tolist() == [3.0, 3.25, 3.5, 3.75]


def test_mixup_has_a_share_for_each_sample() -> None:
    images, partners = IMAGE.repeat(3, 1, 1, 1), PARTNER.repeat(3, 1, 1, 1)
    mixed = mixup(images, partners, numbers(1.0, 0.5, 0.0))
    assert torch.equal(mixed[0], images[0])
    assert mixed[1].flatten().tolist() == [2.0, 2.5, 3.0, 3.5]
    assert torch.equal(mixed[2], partners[2])


@pytest.mark.parametrize(
    ("lam", "y", "x", "pixels", "left"),
    [
        (0.75, 0.5, 0.5, [0, 1, 2, 4], 0.75),  # a box of 1x1 at (1, 1)
        (0.75, 0.0, 0.99, [0, 4, 2, 3], 0.75),
        (0.0, 0.5, 0.5, [4, 4, 4, 4], 0.0),  # the whole image
        (0.0, 0.0, 0.0, [4, 1, 2, 3], 0.75),  # 2x2 about (0, 0), clipped to one pixel
        (0.0, 0.0, 0.5, [4, 4, 2, 3], 0.5),  # clipped to the upper row
        (0.8, 0.5, 0.5, [0, 1, 2, 3], 1.0),  # a box of less than a pixel
        (1.0, 0.0, 0.0, [0, 1, 2, 3], 1.0),
    ],
)
def test_cutmix_by_hand(lam: float, y: float, x: float, pixels: list[float], left: float) -> None:
    mixed, share = cutmix(IMAGE, PARTNER, numbers(lam), numbers(y), numbers(x))
    assert mixed.flatten().tolist() == pixels
    assert share.tolist() == [left]


def test_box_has_the_proportions_and_area_of_the_paper() -> None:
    top, bottom, left, right = cutmix_box(numbers(0.75), numbers(0.5), numbers(0.5), 20, 40).flatten().tolist()
    assert (top, bottom, left, right) == (5, 15, 10, 30)  # sqrt(1 - 0.75) of each side


def test_share_is_the_area_that_is_left() -> None:
    shares = drawn(Mixing(cutmix_alpha=1.0))
    images, partners = torch.zeros(DRAWS, 1, 7, 5), torch.ones(DRAWS, 1, 7, 5)
    mixed, left = cutmix(images, partners, shares.lam, shares.center_y, shares.center_x)
    torch.testing.assert_close(left, 1 - mixed.mean((1, 2, 3)))
    assert float(left.min()) >= 0
    assert float(left.max()) <= 1
    assert torch.all(left >= shares.lam - 1e-6), "rounding and clipping only make a box smaller"


def test_box_centres_are_uniform() -> None:
    shares = drawn(Mixing(cutmix_alpha=1.0))
    top, bottom, left, right = cutmix_box(torch.full((DRAWS,), 0.97), shares.center_y, shares.center_x, 6, 6)
    assert torch.equal((bottom - top) * (right - left), torch.ones(DRAWS, dtype=torch.int64))
    counts = torch.bincount(top * 6 + left, minlength=36).double()
    wanted = DRAWS / 36
    assert float(((counts - wanted) ** 2 / wanted).sum()) < 72  # chi-square, 35 degrees of freedom, p = 0.0002


def test_targets_by_hand() -> None:
    mixed = mix_targets(torch.tensor([0, 2, 1]), torch.tensor([1, 2, 0]), numbers(0.75, 0.3, 1.0), 3)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]))


def test_targets_of_no_samples() -> None:
    empty = torch.arange(0)
    assert mix_targets(empty, empty, torch.empty(0), 3).shape == (0, 3)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 4.0])
@pytest.mark.parametrize("kind", ["mixup_alpha", "cutmix_alpha"])
def test_shares_have_the_beta_distribution(alpha: float, kind: str) -> None:
    lam = drawn(Mixing(**{kind: alpha})).lam.double().numpy()
    points = np.linspace(0.001, 0.999, 500)
    distance = np.abs(np.searchsorted(np.sort(lam), points) / DRAWS - beta.cdf(points, alpha, alpha)).max()
    assert distance < 1.95 / math.sqrt(DRAWS)  # Kolmogorov-Smirnov, p = 0.001


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_quantiles_are_scipys(alpha: float) -> None:
    levels = torch.linspace(0.01, 0.99, 1000)
    wanted = torch.from_numpy(beta.ppf(levels.double().numpy(), alpha, alpha))
    torch.testing.assert_close(beta_quantile(alpha, levels).double(), wanted, rtol=0, atol=1e-4)


def test_quantiles_at_the_ends() -> None:
    assert beta_quantile(0.5, numbers(0.0)).item() == 0
    assert beta_quantile(0.5, numbers(1 - 2**-24)).item() == pytest.approx(1, abs=1e-6)


def test_one_alpha_alone_gives_one_kind() -> None:
    assert not drawn(Mixing(mixup_alpha=0.2, switch_prob=1.0)).cut.any()
    assert drawn(Mixing(cutmix_alpha=1.0, switch_prob=0.0)).cut.all()


@pytest.mark.parametrize("switch_prob", [0.0, 0.3, 1.0])
def test_switch(switch_prob: float) -> None:
    shares = drawn(Mixing(0.2, 1.0, switch_prob=switch_prob))
    assert float(shares.cut.float().mean()) == pytest.approx(switch_prob, abs=0.015)
    for cut, alpha in ((True, 1.0), (False, 0.2)):
        some = shares.lam[shares.cut == cut]
        if len(some):
            assert float(some.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)


@pytest.mark.parametrize("prob", [0.0, 0.4, 1.0])
def test_share_of_mixed_samples(prob: float) -> None:
    assert float((drawn(Mixing(mixup_alpha=4.0, prob=prob)).lam < 1).float().mean()) == pytest.approx(prob, abs=0.015)


def test_draws_are_named() -> None:
    mixing = Mixing(0.2, 1.0)
    key = hashed(0, "mixing", torch.arange(50), 3)
    torch.manual_seed(5)
    for whole, part in zip(mixing.draw(key), mixing.draw(key[10:20]), strict=True):
        assert torch.equal(whole[10:20], part)
    assert not torch.equal(drawn(mixing).lam, drawn(mixing, seed=1).lam)


def test_views_are_mixed_with_one_share_and_one_relative_box() -> None:
    shares = Shares(numbers(0.25, 0.75), torch.tensor([False, True]), numbers(0.5, 0.5), numbers(0.5, 0.25))
    images = {"large": torch.zeros(2, 1, 16, 16), "default": torch.zeros(2, 1, 8, 8)}
    partners = {name: torch.ones_like(image) for name, image in images.items()}
    mixed, lam = mix(images, partners, shares)
    assert lam.tolist() == [0.25, 0.75]
    for name, size in (("default", 8), ("large", 16)):
        assert torch.equal(mixed[name][0], torch.full((1, size, size), 0.75))
        box = torch.zeros(1, size, size)
        box[:, size // 4 : 3 * size // 4, : size // 2] = 1
        assert torch.equal(mixed[name][1], box)


def test_share_of_the_default_view_is_reported() -> None:
    shares = Shares(numbers(0.75), torch.tensor([True]), numbers(0.5), numbers(0.5))
    images = {"large": torch.zeros(1, 1, 8, 8), "default": torch.zeros(1, 1, 3, 3), "peer": torch.zeros(1, 1, 8, 8)}
    partners = {name: torch.ones_like(image) for name, image in images.items()}
    assert mix(images, partners, shares)[1].item() == pytest.approx(1 - 1 / 9)


def test_unmixed_samples_stay_as_they_are() -> None:
    images = {"default": torch.randn(64, 3, 8, 8)}
    shares = Mixing(0.2, 1.0, prob=0.0).draw(torch.arange(64))
    mixed, lam = mix(images, {"default": torch.randn(64, 3, 8, 8)}, shares)
    assert torch.equal(mixed["default"], images["default"])
    assert torch.equal(lam, torch.ones(64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"^mixing needs mixup_alpha > 0 or cutmix_alpha > 0, got 0 and 0 \(mixing: null for none\)$"),
        ({"mixup_alpha": -0.1}, r"^mixing.mixup_alpha must be finite and >= 0, got -0.1$"),
        ({"cutmix_alpha": math.inf}, r"^mixing.cutmix_alpha must be finite and >= 0, got inf$"),
        ({"mixup_alpha": math.nan}, r"^mixing.mixup_alpha must be finite and >= 0, got nan$"),
        ({"mixup_alpha": 1.0, "prob": 1.5}, r"^mixing.prob must be in \[0, 1\], got 1.5$"),
        ({"mixup_alpha": 1.0, "switch_prob": -1.0}, r"^mixing.switch_prob must be in \[0, 1\], got -1.0$"),
    ],
)
def test_faults(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixing(**options)
