"""Calibration: how often a network is right, by how sure it is, in sums that add up over batches and ranks."""

import torch
from torch import Tensor

from kd_lightning.distillers.metrics import ECE_BINS


def binned(confidence: Tensor, right: Tensor, bins: int = ECE_BINS) -> Tensor:
    """Number of images, sum of their confidence, and number of right answers by bins of confidence of equal width.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, sec. 2. A bin takes its lower bound in,
    the last one its upper bound too.

    Args:
        confidence: Probability of the decision, in [0, 1], ``[N]``.
        right: Whether it is the label, bool ``[N]``.
        bins: How many, >= 1.

    Returns:
        float64 ``[3, bins]``.
    """
    bounds = torch.linspace(0, 1, bins + 1, dtype=confidence.dtype, device=confidence.device)
    place = (torch.bucketize(confidence, bounds, right=True) - 1).clamp(max=bins - 1)
    each = torch.stack([torch.ones_like(confidence), confidence, right.to(confidence.dtype)]).double()
    return each.new_zeros(3, bins).index_add(1, place, each)
