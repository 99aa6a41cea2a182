"""Whether a difference is more than chance: 95 % intervals over seeds and over test images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from torch import Tensor

LEVEL = 0.95


class Interval(NamedTuple):
    """A difference, and the interval that covers the true one in 95 of 100 such experiments.

    Attributes:
        difference: Of the means, first minus second.
        low: Its lower bound.
        high: Its upper bound.
        how: By what, in a few words.
    """

    difference: float
    low: float
    high: float
    how: str


def difference_over_seeds(a: Sequence[float], b: Sequence[float]) -> Interval:
    """Mean of ``a`` minus mean of ``b``, runs with independent seeds, by Welch's t, which lets their spreads differ.

    It covers other seeds, not other test images. Where neither spreads it has no width.

    Raises:
        ValueError: if one has fewer than two values.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"an interval over seeds needs two runs of each at least, got {len(a)} and {len(b)}")
    difference = float(np.mean(a) - np.mean(b))
    how = f"Welch's t over {len(a)} and {len(b)} seeds"
    if constant(a) and constant(b):
        return Interval(difference, difference, difference, how)
    found = stats.ttest_ind(a, b, equal_var=False).confidence_interval(LEVEL)
    return Interval(difference, float(found.low), float(found.high), how)


def difference_over_images(correct_a: Tensor, correct_b: Tensor) -> Interval:
    """Accuracy of ``a`` minus that of ``b`` on the same images, by the t of the differences of pairs.

    It covers other test images, not other seeds. Where all pairs differ alike it has no width.

    Args:
        correct_a: Whether each image is right, bool ``[M]``, M >= 2.
        correct_b: The same of the other, of the same images in the same order.

    Raises:
        ValueError: if they are not of one length, or of fewer than two images.
    """
    if correct_a.shape != correct_b.shape or correct_a.ndim != 1 or len(correct_a) < 2:
        raise ValueError(
            "correct_a and correct_b must be of the same two images at least, "
            f"got shapes {tuple(correct_a.shape)} and {tuple(correct_b.shape)}"
        )
    pairs = (correct_a.double() - correct_b.double()).numpy()
    difference, how = float(pairs.mean()), f"paired t over {len(pairs)} test images"
    if constant(pairs):
        return Interval(difference, difference, difference, how)
    found = stats.ttest_1samp(pairs, 0.0).confidence_interval(LEVEL)
    return Interval(difference, float(found.low), float(found.high), how)


def constant(values: ArrayLike) -> bool:
    """Whether all values are the same."""
    return bool(np.ptp(np.asarray(values)) == 0)
