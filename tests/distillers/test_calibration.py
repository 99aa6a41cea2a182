import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from kd_lightning.distillers.calibration import binned


def test_an_image_falls_into_the_bin_that_begins_with_its_confidence() -> None:
    sums = binned(torch.tensor([0.5, 0.6, 0.75, 1.0]), torch.tensor([True, False, True, True]), bins=4)
    assert sums[0].tolist() == [0, 0, 2, 2]
    assert sums[1].tolist() == pytest.approx([0, 0, 1.1, 1.75])
    assert sums[2].tolist() == [0, 0, 1, 2]


def test_sums_of_batches_add_up_to_the_expected_calibration_error() -> None:
    probabilities = (3 * torch.randn(500, 7)).softmax(dim=1)
    target = torch.randint(7, (500,))
    sure, decided = probabilities.max(dim=1)
    halves = [binned(sure[part], decided[part] == target[part]) for part in (slice(0, 200), slice(200, 500))]
    count, confidence, right = halves[0] + halves[1]
    assert count.sum() == 500
    error = (confidence - right).abs().sum() / 500
    assert float(error) == pytest.approx(float(multiclass_calibration_error(probabilities, target, 7, n_bins=15)), 1e-5)


def test_no_images_are_no_sums() -> None:
    assert binned(torch.zeros(0), torch.zeros(0, dtype=torch.bool)).tolist() == [[0] * 15] * 3
