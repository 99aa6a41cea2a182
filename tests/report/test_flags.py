"""Flags: raised by teachers that are trained as they warn of, and not by others."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from kd_lightning.report.flags import flags, flattened, near_one_hot, spread_of_wrong, too_close, too_far

Split = tuple[Tensor, Tensor, Tensor, Tensor]


class Trained(NamedTuple):
    """Logits of the test images."""

    logits: Tensor
    target: Tensor


@pytest.fixture(scope="module")
def digits() -> Split:
    images, target = load_digits(return_X_y=True)
    images, target = torch.from_numpy(images).float() / 16, torch.from_numpy(target).long()
    test = torch.arange(len(target)) % 4 == 0
    return images[~test], target[~test], images[test], target[test]


def trained(digits: Split, smoothing: float, seed: int, width: int = 64, epochs: int = 40) -> Trained:
    images, target, test_images, test_target = digits
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.003)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(128):
            optimizer.zero_grad()
            F.cross_entropy(network(images[rows]), target[rows], label_smoothing=smoothing).backward()
            optimizer.step()
    with torch.no_grad():
        return Trained(network(test_images), test_target)


@pytest.mark.parametrize(("smoothing", "raised"), [(0.0, False), (0.1, True), (0.2, True)])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_smoothed_teacher_is_flagged_and_another_is_not(
    digits: Split, smoothing: float, raised: bool, seed: int
) -> None:
    teacher = trained(digits, smoothing, seed)
    assert (teacher.logits.argmax(dim=1) == teacher.target).double().mean() > 0.95
    flag = flattened(teacher.logits)
    assert (flag is not None) == raised
    if flag is not None:
        assert flag.figures["confidence"] < 1 - smoothing / 2
        assert f"median confidence is {flag.figures['confidence']:.2f}" in flag.said


def test_flattened_needs_both_low_confidence_and_equal_wrong_classes() -> None:
    smoothed = torch.full((5, 10), 0.01).log()
    smoothed[:, 0] = math.log(0.91)
    flag = flattened(smoothed)
    assert flag is not None
    assert flag.figures == pytest.approx({"confidence": 0.91, "spread": 0.0})
    assert flattened(4 * smoothed) is None  # as equal, but sure
    unsure = smoothed.clone()
    unsure[:, 1:] -= 1 + torch.arange(9.0)  # as unsure as the largest one is made, but the wrong classes differ
    unsure[:, 0] = unsure[:, 1]
    assert flattened(unsure) is None
    assert flattened(torch.zeros(4, 2)) is None  # two classes have one wrong one each


def test_the_spread_is_that_of_log_probabilities_without_the_largest() -> None:
    logits = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    ordered = np.sort(logits.double().log_softmax(dim=1).numpy(), axis=1)
    assert spread_of_wrong(logits).numpy() == pytest.approx(ordered[:, :-1].std(axis=1, ddof=1))


def test_the_same_teacher_is_near_one_hot_at_a_low_temperature_alone(digits: Split) -> None:
    teacher = trained(digits, 0.0, seed=0)
    flag = near_one_hot(teacher.logits, 0.5)
    assert flag is not None
    assert flag.figures["temperature"] == 0.5
    assert "bits of entropy at T = 0.5" in flag.said
    assert near_one_hot(teacher.logits, 4.0) is None


def test_a_hundredth_for_the_wrong_classes_is_about_the_bound() -> None:
    def wrong(share: float) -> Tensor:
        return torch.tensor([[1 - share, *[share / 9] * 9]]).log()

    assert near_one_hot(wrong(0.008), 1.0) is not None
    assert near_one_hot(wrong(0.012), 1.0) is None


def right(count: int, of: int = 100) -> Tensor:
    return torch.arange(of) < count


@pytest.mark.parametrize(
    ("student", "teacher", "ratio", "said"),
    [
        (70, 90, 3.0, None),
        (90, 90, 3.0, "is +0.00 points ahead"),
        (90, 80, 3.0, "is -10.00 points ahead"),
        (89, 90, 3.0, "95 % interval -0.98 to +2.98"),
        (70, 90, 1.2, "it has 1.20 times the student's parameters"),
        (90, 90, 1.0, "and has 1.00 times"),
    ],
)
def test_a_teacher_that_is_not_ahead_or_not_larger_is_close(
    student: int, teacher: int, ratio: float, said: str | None
) -> None:
    flag = too_close(right(student), right(teacher), ratio)
    assert (flag is None) == (said is None)
    if flag is not None and said is not None:
        assert said in flag.said
        assert flag.figures["lead"] == pytest.approx((teacher - student) / 100)


def decided(classes: Tensor, confidence: float = 3.0) -> Tensor:
    return confidence * F.one_hot(classes, 10)


@pytest.mark.parametrize(
    ("ratio", "followed", "raised"), [(50, 95, False), (50, 85, True), (9, 50, False), (10, 50, True)]
)
def test_a_large_teacher_that_is_not_followed_is_far(ratio: float, followed: int, raised: bool) -> None:
    target = torch.arange(100) % 10
    student = torch.where(torch.arange(100) < followed, target, (target + 1) % 10)
    flag = too_far(decided(student), decided(target), target, ratio)
    assert (flag is not None) == raised
    if flag is not None:
        assert flag.figures["agreement"] == pytest.approx(followed / 100)
        assert flag.figures["teacher_top1"] == 1.0


def test_a_student_far_off_in_probability_is_far_though_it_decides_alike() -> None:
    target = torch.arange(100) % 10
    flag = too_far(decided(target, confidence=0.1), decided(target, confidence=10.0), target, 50.0)
    assert flag is not None
    assert flag.figures["agreement"] == 1.0
    assert flag.figures["kl"] == pytest.approx(math.log(9 + math.exp(0.1)) - 0.1, abs=0.01)


def test_a_plain_distillation_raises_nothing(digits: Split) -> None:
    teacher, student = trained(digits, 0.0, seed=0), trained(digits, 0.0, seed=1, width=4)
    assert (
        flags(student.logits, teacher.logits, teacher.target, True, 4.0, student_params=322, teacher_params=3000) == []
    )


def test_soft_targets_are_not_judged_where_none_are_learnt() -> None:
    target = torch.arange(100) % 10
    student = torch.where(torch.arange(100) < 90, target, (target + 1) % 10)
    given = (decided(student, 100.0), decided(target, 100.0), target)
    assert [flag.name for flag in flags(*given, True, 1.0, 100, 300)] == ["near one-hot soft targets"]
    assert flags(*given, False, None, 100, 300) == []


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"got \[\(4, 3\), \(4, 2\), \(4,\)\]"):
        flags(torch.zeros(4, 3), torch.zeros(4, 2), torch.zeros(4).long(), True, 1.0, 1, 1)
