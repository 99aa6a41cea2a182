"""Intervals of differences, against scipy, textbook formulas and their own promise."""

import numpy as np
import pytest
import torch
from scipy import stats

from kd_lightning.report.intervals import Interval, difference_over_images, difference_over_seeds

A, B = [0.91, 0.93, 0.92, 0.95], [0.90, 0.89, 0.93]


def test_over_seeds_it_is_welchs_by_the_formula() -> None:
    found = difference_over_seeds(A, B)
    parts = [np.var(each, ddof=1) / len(each) for each in (A, B)]
    freedom = sum(parts) ** 2 / sum(part**2 / (len(each) - 1) for part, each in zip(parts, (A, B), strict=True))
    half = stats.t.ppf(0.975, freedom) * np.sqrt(sum(parts))
    difference = np.mean(A) - np.mean(B)
    assert found[:3] == pytest.approx((difference, difference - half, difference + half))
    assert found.how == "Welch's t over 4 and 3 seeds"


def test_over_images_it_is_the_paired_t_of_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(300, generator=generator) < 0.9, torch.rand(300, generator=generator) < 0.85
    found = difference_over_images(a, b)
    expected = stats.ttest_rel(a.double().numpy(), b.double().numpy()).confidence_interval(0.95)
    assert found[:3] == pytest.approx((float((a.double() - b.double()).mean()), expected.low, expected.high))
    assert found.how == "paired t over 300 test images"


def test_pairing_counts_only_where_they_differ() -> None:
    # By McNemar: (gained - lost) / M, of variance ((gained + lost) - (gained - lost)^2 / M) / M (M - 1).
    a, b = torch.zeros(100).bool(), torch.zeros(100).bool()
    a[:12], b[9:16] = True, True  # 9 gained, 4 lost
    found = difference_over_images(a, b)
    half = stats.t.ppf(0.975, 99) * np.sqrt((13 - 25 / 100) / (100 * 99))
    assert found[:3] == pytest.approx((0.05, 0.05 - half, 0.05 + half))


def test_no_difference_and_no_spread_have_no_width() -> None:
    same = torch.tensor([True, False, True])
    assert difference_over_images(same, same)[:3] == (0.0, 0.0, 0.0)
    assert difference_over_images(~same & False, same | True)[:3] == (-1.0, -1.0, -1.0)
    assert difference_over_seeds([0.5, 0.5], [0.25, 0.25, 0.25]) == Interval(
        0.25, 0.25, 0.25, "Welch's t over 2 and 3 seeds"
    )


def test_it_covers_the_true_difference_in_95_of_100_experiments() -> None:
    generator = np.random.default_rng(0)
    experiments = [
        difference_over_seeds(generator.normal(1, 2, 3).tolist(), generator.normal(0, 1, 5).tolist())
        for _ in range(1000)
    ]
    covered = np.mean([found.low <= 1 <= found.high for found in experiments])
    assert 0.93 < covered < 0.975


def test_too_few_and_unequal_are_named() -> None:
    with pytest.raises(ValueError, match="two runs of each at least, got 1 and 3"):
        difference_over_seeds([0.5], B)
    with pytest.raises(ValueError, match=r"same two images at least, got shapes \(2,\) and \(3,\)"):
        difference_over_images(torch.ones(2).bool(), torch.ones(3).bool())
    with pytest.raises(ValueError, match=r"got shapes \(1,\) and \(1,\)"):
        difference_over_images(torch.ones(1).bool(), torch.ones(1).bool())
