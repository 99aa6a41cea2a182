"""What is asked of a run's module: whether the student learns soft targets."""

import pytest
from torch import nn

from kd_lightning import losses
from kd_lightning.distillers import Term
from kd_lightning.distillers.criteria import Criteria
from kd_lightning.report.examined import learns_soft_targets


@pytest.mark.parametrize(
    ("loss", "learns"),
    [
        (losses.SoftTarget(), True),
        (losses.SoftTarget(standardize=True), True),
        (losses.CurriculumTemperature(losses.SoftTarget()), True),
        (losses.MultiLevelKD(), True),
        (losses.HardLabel(), False),
        (losses.AttentionTransfer(), False),
        (losses.CrossEntropy(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_soft_targets_are_learnt_where_a_term_softens_the_teachers_logits(loss: nn.Module, learns: bool) -> None:
    assert learns_soft_targets(Criteria({"term": Term(loss)})) is learns
