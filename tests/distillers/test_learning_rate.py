import copy
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR

from kd_lightning.distillers import ShareCosineLR, ShareMultiStepLR
from kd_lightning.distillers.learning_rate import StretchedToTraining


def sgd(lr: float = 0.05) -> SGD:
    return SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def rates(optimizer: Optimizer, scheduler: LRScheduler, epochs: int) -> list[float]:
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_the_shares_of_the_standard_protocol_are_its_epochs() -> None:
    optimizer, other = sgd(), sgd()
    scheduler = ShareMultiStepLR(optimizer, [0.625, 0.75, 0.875])
    scheduler.stretch(240)
    expected = rates(other, MultiStepLR(other, [150, 180, 210]), 240)
    assert rates(optimizer, scheduler, 240) == pytest.approx(expected, rel=1e-12)
    assert len(set(expected)) >= 4


def test_the_milestones_follow_the_length_of_the_training() -> None:
    optimizer = sgd(1.0)
    scheduler = ShareMultiStepLR(optimizer, [0.5, 0.75], gamma=0.5)
    scheduler.stretch(8)
    assert rates(optimizer, scheduler, 8) == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_the_first_epoch_has_the_stated_rate_however_short_the_training() -> None:
    optimizer = sgd(1.0)
    scheduler = ShareMultiStepLR(optimizer, [0.1, 0.2])
    scheduler.stretch(2)
    assert rates(optimizer, scheduler, 1) == [1.0]


@pytest.mark.parametrize(("warmup", "factor", "final"), [(0, 0.0, 0.0), (5, 0.1, 0.01), (5, 0.0, 0.0), (1, 0.5, 1.0)])
def test_cosine_against_its_formula(warmup: int, factor: float, final: float) -> None:
    optimizer = sgd(2.0)
    scheduler = ShareCosineLR(optimizer, warmup, factor, final)
    scheduler.stretch(30)
    for epoch, rate in enumerate(rates(optimizer, scheduler, 30)):
        if epoch < warmup:
            expected = 2 * (factor * (warmup - epoch) + epoch) / warmup
        else:
            expected = 2 * (final + (1 - final) * math.cos(math.pi * (epoch - warmup) / (30 - warmup) / 2) ** 2)
        assert rate == pytest.approx(expected, abs=1e-12)


def test_the_warm_up_may_be_a_share_of_the_training() -> None:
    for epochs in (20, 40):
        optimizer, other = sgd(2.0), sgd(2.0)
        scheduler, expected = ShareCosineLR(optimizer, 0.1, 0.5, 0.1), ShareCosineLR(other, epochs // 10, 0.5, 0.1)
        for each in (scheduler, expected):
            each.stretch(epochs)
        found = rates(optimizer, scheduler, epochs)
        assert found == rates(other, expected, epochs)
        assert found[0] == 1.0
        assert max(found) == found[epochs // 10] == 2.0


def test_cosine_stays_on_its_floor() -> None:
    optimizer = sgd(1.0)
    scheduler = ShareCosineLR(optimizer, final_factor=0.25)
    scheduler.stretch(4)
    assert rates(optimizer, scheduler, 8)[4:] == pytest.approx([0.25] * 4)


@pytest.mark.parametrize(
    "make",
    [lambda o: ShareMultiStepLR(o, [0.3, 0.6]), lambda o: ShareCosineLR(o, 2, 0.1, 0.01)],
    ids=["multi-step", "cosine"],
)
def test_a_restored_schedule_goes_on_as_the_uninterrupted_one(make: Callable[[Optimizer], Any]) -> None:
    optimizer = sgd()
    whole = make(optimizer)
    assert isinstance(whole, StretchedToTraining)
    whole.stretch(10)
    rates(optimizer, whole, 4)
    kept, kept_optimizer = copy.deepcopy(whole.state_dict()), copy.deepcopy(optimizer.state_dict())
    expected = rates(optimizer, whole, 6)

    other = sgd(9.0)
    restored = make(other)
    restored.load_state_dict(kept)
    other.load_state_dict(kept_optimizer)
    assert rates(other, restored, 6) == expected
    assert restored.state_dict() == whole.state_dict()


@pytest.mark.parametrize("milestones", [[0.5, 0.25], [0.0, 0.5], [0.5, 1.0], [150, 180], [-0.5]])
def test_milestones_that_are_no_ascending_shares_are_refused(milestones: list[float]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"ascending shares in (0, 1), got {milestones}")):
        ShareMultiStepLR(sgd(), milestones)


@pytest.mark.parametrize("gamma", [0.0, -0.1, float("nan")])
def test_gamma_that_is_not_positive_is_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match=f"gamma must be > 0, got {gamma}"):
        ShareMultiStepLR(sgd(), [0.5], gamma)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warmup_epochs": -1}, "warmup_epochs must be >= 0, got -1"),
        ({"warmup_epochs": 5.0}, r"warmup_epochs must be an integer of epochs, or a share .* in \[0, 1\], got 5\.0"),
        ({"warmup_factor": 1.5}, r"warmup_factor must be in \[0, 1\], got 1.5"),
        ({"final_factor": -0.1}, r"final_factor must be in \[0, 1\], got -0.1"),
    ],
)
def test_cosine_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShareCosineLR(sgd(), **arguments)
