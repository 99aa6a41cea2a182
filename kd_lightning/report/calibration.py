"""Calibration: whether a network is right as often as it is sure."""

from dataclasses import dataclass

from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from kd_lightning.distillers.calibration import binned
from kd_lightning.distillers.metrics import ECE_BINS


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram, from a confidence of 0 to 1 in bins of equal width.

    Attributes:
        confidence: Mean confidence of the images of each bin, float64 ``[bins]``; nan where it has none.
        accuracy: Share of them that is right; nan where it has none.
        count: How many they are, int64.
        ece: Expected calibration error in [0, 1], as ``test/ece``.
    """

    confidence: Tensor
    accuracy: Tensor
    count: Tensor
    ece: float


def reliability(probabilities: Tensor, target: Tensor, bins: int = ECE_BINS) -> Reliability:
    """The reliability diagram and the expected calibration error.

    A bin takes its lower bound in, the last one its upper bound too. torchmetrics, which `Reliability.ece` is from,
    gives a confidence of exactly 1 a bin of its own.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 3.

    Args:
        probabilities: ``[M, C]``, M >= 1.
        target: Labels, int64 ``[M]``.
        bins: How many, >= 1.

    Raises:
        ValueError: if there are no images, or not as many labels.
    """
    if probabilities.ndim != 2 or target.shape != probabilities.shape[:1] or not len(target):
        raise ValueError(
            "probabilities must be [M, C] and target [M] with M >= 1, "
            f"got {tuple(probabilities.shape)} and {tuple(target.shape)}"
        )
    sure, decision = probabilities.max(dim=1)
    count, confidence, accuracy = binned(sure, decision == target, bins)
    ece = multiclass_calibration_error(probabilities, target, probabilities.shape[1], n_bins=bins)
    return Reliability(confidence / count, accuracy / count, count.long(), float(ece))
