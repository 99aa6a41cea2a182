"""Reliability, against torchmetrics and by hand."""

import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError

from kd_lightning.report.calibration import reliability


def test_bins_and_error_by_hand() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7]])
    found = reliability(probabilities, torch.tensor([0, 1, 1, 1]), bins=4)
    assert found.count.tolist() == [0, 0, 2, 2]
    assert found.confidence[2:].tolist() == pytest.approx([0.65, 0.85])
    assert found.accuracy[2:].tolist() == [1.0, 0.5]
    assert found.confidence[:2].isnan().all()
    assert found.accuracy[:2].isnan().all()
    assert found.ece == pytest.approx((0.35 + 0.35) / 2)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_the_error_is_that_of_torchmetrics_and_of_the_bins(bins: int) -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = (3 * torch.randn(500, 7, generator=generator)).softmax(dim=1)
    target = torch.randint(7, (500,), generator=generator)
    found = reliability(probabilities, target, bins)
    metric = MulticlassCalibrationError(7, n_bins=bins)
    metric.update(probabilities, target)
    assert found.ece == pytest.approx(float(metric.compute()), abs=1e-6)
    gaps = (found.count * (found.confidence - found.accuracy).abs()).nan_to_num() / 500
    assert found.ece == pytest.approx(float(gaps.sum()), abs=1e-6)


def test_a_bound_belongs_to_the_bin_above_and_1_to_the_last() -> None:
    found = reliability(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([0, 0]), bins=2)
    assert found.count.tolist() == [0, 2]
    assert found.confidence[1].item() == 0.75


@pytest.mark.parametrize(
    ("probabilities", "target"),
    [
        (torch.ones(3), torch.zeros(3).long()),
        (torch.ones(3, 2), torch.zeros(2).long()),
        (torch.ones(0, 2), torch.zeros(0).long()),
    ],
)
def test_other_shapes_are_named(probabilities: torch.Tensor, target: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"probabilities must be \[M, C\]"):
        reliability(probabilities, target)
