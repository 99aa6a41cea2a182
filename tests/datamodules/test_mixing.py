"""Mixed images and targets by hand, and shares that follow their distribution."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binomtest, chisquare, kstest
from torch import Tensor

from kd_lightning.datamodules.mixing import Mixing, Shares, beta_quantile, cutmix, mix, mix_targets, mixup
from kd_lightning.seeds import hashed

KEYS = hashed(0, "mixing", torch.arange(20_000), 0)
UNLIKELY = 1e-4  # no draw is repeated, so a test either always holds or never does
IMAGE = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
PARTNER = torch.tensor([[[[10.0, 20.0], [30.0, 40.0]]]])


def pasted(lam: float, center_y: float, center_x: float) -> tuple[list[list[float]], float]:
    """The 2x2 image with a box of its partner, and its share."""
    image, left = cutmix(IMAGE, PARTNER, torch.tensor([lam]), torch.tensor([center_y]), torch.tensor([center_x]))
    return image[0, 0].tolist(), float(left)


def test_mixup_by_hand() -> None:
    mixed = mixup(IMAGE, PARTNER, torch.tensor([0.75]))
    assert mixed[0, 0].tolist() == [[3.25, 6.5], [9.75, 13.0]]


def test_mixup_has_a_share_for_each_sample() -> None:
    images, partners = torch.ones(3, 2, 2, 2), torch.zeros(3, 2, 2, 2)
    assert mixup(images, partners, torch.tensor([0.0, 0.5, 1.0])).amax((1, 2, 3)).tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("lam", "center_y", "center_x", "image", "left"),
    [
        (0.75, 0.5, 0.5, [[1, 2], [3, 40]], 0.75),  # a side of sqrt(1/4) x 2 = 1 pixel
        (0.75, 0.0, 0.5, [[1, 20], [3, 4]], 0.75),
        (0.75, 0.99, 0.0, [[1, 2], [30, 4]], 0.75),
        (0.0, 0.5, 0.5, [[10, 20], [30, 40]], 0.0),
        (0.0, 0.0, 0.5, [[10, 20], [3, 4]], 0.5),  # its upper half is clipped
        (0.0, 0.0, 0.0, [[10, 2], [3, 4]], 0.75),
        (0.9, 0.5, 0.5, [[1, 2], [3, 4]], 1.0),  # a side of 0.63 pixels is none
        (1.0, 0.5, 0.5, [[1, 2], [3, 4]], 1.0),
    ],
)
def test_cutmix_by_hand(lam: float, center_y: float, center_x: float, image: list[list[float]], left: float) -> None:
    assert pasted(lam, center_y, center_x) == (image, left)


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1, width=32), st.floats(0, 0.999), st.floats(0, 0.999))
def test_cutmix_share_is_the_area_that_is_left(
    height: int, width: int, lam: float, center_y: float, center_x: float
) -> None:
    images, partners = torch.ones(1, 2, height, width), torch.zeros(1, 2, height, width)
    shares = [torch.tensor([value]) for value in (lam, center_y, center_x)]
    mixed, left = cutmix(images, partners, *shares)
    assert set(mixed.unique().tolist()) <= {0.0, 1.0}
    assert float(left) == pytest.approx(float(mixed.mean()), abs=1e-6)
    assert float(left) >= lam - 1e-6, "rounding down and clipping only make the box smaller"


def test_cutmix_box_is_one_rectangle_with_the_images_proportions() -> None:
    images, partners = torch.zeros(1, 1, 16, 32), torch.ones(1, 1, 16, 32)
    half = torch.tensor([0.5])
    box, left = cutmix(images, partners, torch.tensor([0.75]), half, half)
    expected = torch.zeros(16, 32)
    expected[4:12, 8:24] = 1
    assert torch.equal(box[0, 0], expected)
    assert float(left) == 0.75


def test_targets_by_hand() -> None:
    mixed = mix_targets(torch.tensor([0, 1]), torch.tensor([2, 1]), torch.tensor([0.75, 0.25]), 3)
    assert mixed.tolist() == [[0.75, 0, 0.25], [0, 1, 0]]
    assert mixed.dtype == torch.float32


@given(st.integers(0, 4), st.integers(0, 4), st.floats(0, 1, width=32))
def test_targets_sum_to_one(own: int, partners: int, lam: float) -> None:
    mixed = mix_targets(torch.tensor([own]), torch.tensor([partners]), torch.tensor([lam]), 5)
    assert float(mixed.sum()) == pytest.approx(1, abs=1e-6)
    assert float(mixed.min()) >= 0


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_quantiles_are_scipys(alpha: float) -> None:
    level = torch.rand(2000)
    found = beta.cdf(beta_quantile(alpha, level).double().numpy(), alpha, alpha)
    assert abs(found - level.double().numpy()).max() < 1 / 1024  # 4 of the table's steps: it is linear between them


def test_quantiles_go_up_from_0_to_1() -> None:
    found = beta_quantile(0.3, torch.linspace(0, 1 - 2**-24, 5000))
    assert bool((found.diff() >= 0).all())
    assert float(found[0]) == 0
    assert float(found[-1]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 4.0])
@pytest.mark.parametrize("kind", ["mixup_alpha", "cutmix_alpha"])
def test_lambda_follows_its_beta(kind: str, alpha: float) -> None:
    shares = Mixing(**{kind: alpha}).draw(KEYS)
    assert kstest(shares.lam.double().numpy(), beta(alpha, alpha).cdf).pvalue > UNLIKELY
    assert shares.cut.unique().tolist() == [kind == "cutmix_alpha"]


def test_box_centres_are_uniform_and_independent_of_lambda() -> None:
    shares = Mixing(cutmix_alpha=1.0).draw(KEYS)
    cells = [(part * 6).long() for part in (shares.lam, shares.center_y, shares.center_x)]
    counts = torch.bincount(cells[0] * 36 + cells[1] * 6 + cells[2], minlength=216)
    assert chisquare(counts).pvalue > UNLIKELY


def test_each_kind_has_its_own_beta() -> None:
    shares = Mixing(mixup_alpha=0.2, cutmix_alpha=4.0, switch_prob=0.3).draw(KEYS)
    assert binomtest(int(shares.cut.sum()), len(KEYS), 0.3).pvalue > UNLIKELY
    for cut, alpha in ((True, 4.0), (False, 0.2)):
        assert kstest(shares.lam[shares.cut == cut].double().numpy(), beta(alpha, alpha).cdf).pvalue > UNLIKELY


def test_part_of_the_samples_stays_as_it_is() -> None:
    always, often = Mixing(mixup_alpha=1.0).draw(KEYS).lam, Mixing(mixup_alpha=1.0, prob=0.7).draw(KEYS).lam
    mixed = often < 1
    assert binomtest(int(mixed.sum()), len(KEYS), 0.7).pvalue > UNLIKELY
    assert torch.equal(often[mixed], always[mixed])
    assert Mixing(mixup_alpha=1.0, cutmix_alpha=1.0, prob=0.0).draw(KEYS).lam.unique().tolist() == [1.0]


@pytest.mark.parametrize(("switch", "cut"), [(0.0, False), (1.0, True)])
def test_switch_at_its_ends(switch: float, cut: bool) -> None:
    assert Mixing(mixup_alpha=1.0, cutmix_alpha=1.0, switch_prob=switch).draw(KEYS).cut.unique().tolist() == [cut]


def test_shares_are_those_of_the_names_whatever_the_batch() -> None:
    mixing = Mixing(mixup_alpha=0.4, cutmix_alpha=1.0, prob=0.8)
    some = torch.tensor([7, 3, 11_000])
    for whole, part in zip(mixing.draw(KEYS), mixing.draw(KEYS[some]), strict=True):
        assert torch.equal(whole[some], part)


def two_samples(size: int) -> tuple[Tensor, Tensor]:
    """Images of ones with partners of zeros, two of each."""
    return torch.ones(2, 1, size, size), torch.zeros(2, 1, size, size)


def test_all_views_are_mixed_alike() -> None:
    half = torch.tensor([0.5, 0.5])
    shares = Shares(torch.tensor([0.75, 0.75]), torch.tensor([True, False]), half, half)
    views = {"small": two_samples(4), "default": two_samples(8)}
    mixed, lam = mix({n: v[0] for n, v in views.items()}, {n: v[1] for n, v in views.items()}, shares)
    assert list(mixed) == ["small", "default"]
    assert lam.tolist() == [0.75, 0.75]
    for size, image in ((4, mixed["small"]), (8, mixed["default"])):
        box = torch.ones(size, size)
        box[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 0
        assert torch.equal(image[0, 0], box)
        assert image[1].unique().tolist() == [0.75]


def test_share_is_that_of_the_default_view() -> None:
    low, half = torch.tensor([0.6]), torch.tensor([0.5])
    images = {"tiny": torch.ones(1, 1, 2, 2), "default": torch.ones(1, 1, 10, 10)}
    partners = {name: torch.zeros_like(image) for name, image in images.items()}
    mixed, lam = mix(images, partners, Shares(low, torch.tensor([True]), half, half))
    assert float(mixed["tiny"].mean()) == 0.75
    assert float(lam) == pytest.approx(float(mixed["default"].mean())) == pytest.approx(0.64)  # a side of 6 pixels


def test_unmixed_sample_keeps_its_pixels() -> None:
    one, half = torch.ones(2), torch.full((2,), 0.5)
    images, partners = torch.rand(2, 3, 5, 5), torch.rand(2, 3, 5, 5)
    mixed, lam = mix({"default": images}, {"default": partners}, Shares(one, torch.tensor([True, False]), half, half))
    assert torch.equal(mixed["default"], images)
    assert lam.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"^mixing needs mixup_alpha > 0 or cutmix_alpha > 0, got 0 and 0 \(mixing: null for none\)$"),
        ({"mixup_alpha": -0.1}, r"^mixing.mixup_alpha must be finite and >= 0, got -0.1$"),
        ({"cutmix_alpha": float("inf")}, r"^mixing.cutmix_alpha must be finite and >= 0, got inf$"),
        ({"mixup_alpha": float("nan")}, r"^mixing.mixup_alpha must be finite and >= 0, got nan$"),
        ({"mixup_alpha": 1.0, "switch_prob": 1.5}, r"^mixing.switch_prob must be in \[0, 1\], got 1.5$"),
        ({"mixup_alpha": 1.0, "prob": -0.5}, r"^mixing.prob must be in \[0, 1\], got -0.5$"),
    ],
)
def test_faults(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixing(**options)
