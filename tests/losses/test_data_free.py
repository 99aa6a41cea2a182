import math

import pytest
import torch
from torch import Tensor

from kd_lightning.losses import Activation, BatchNormStatistics, ClassBalance, Discrepancy, OneHot
from kd_lightning.losses.batch_norm_statistics import batch_norm_statistics
from kd_lightning.losses.data_free import activation, class_balance, discrepancy, one_hot

SURE = torch.tensor([[math.log(3.0), 0.0], [0.0, math.log(3.0)]])  # p = 3/4 for the larger class


def test_one_hot_by_hand() -> None:
    assert one_hot(SURE).item() == pytest.approx(-math.log(0.75))
    assert one_hot(SURE, torch.tensor([0, 0])).item() == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)


def test_one_hot_is_smallest_where_the_teacher_is_sure() -> None:
    assert one_hot(100 * SURE).item() == pytest.approx(0, abs=1e-6)
    assert one_hot(torch.zeros(4, 10)).item() == pytest.approx(math.log(10))


def test_activation_by_hand() -> None:
    assert activation(torch.tensor([[1.0, -3.0], [0.0, 4.0]])).item() == -2.0


def test_balance_by_hand() -> None:
    assert class_balance(SURE).item() == pytest.approx(-math.log(2))
    assert class_balance(SURE[:1]).item() == pytest.approx(0.75 * math.log(0.75) + 0.25 * math.log(0.25))


def test_balance_lies_between_one_class_and_all() -> None:
    assert class_balance(1000 * torch.eye(5)).item() == pytest.approx(-math.log(5))
    assert class_balance(1000 * torch.eye(5)[[0, 0, 0]]).item() == pytest.approx(0, abs=1e-6)


def test_balance_has_a_gradient_where_classes_have_no_probability() -> None:
    logits = torch.tensor([[0.0, -200.0, 3.0]], requires_grad=True)
    class_balance(logits).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_discrepancy_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 5.0]])
    assert discrepancy(student, teacher).item() == -2.0
    p, q = teacher.softmax(1), student.softmax(1)
    assert discrepancy(student, teacher, "kl").item() == pytest.approx(-(p * (p / q).log()).sum().item(), rel=1e-5)
    assert discrepancy(teacher, teacher, "kl", 2.0).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("measure", ["l1", "kl"])
def test_descending_the_discrepancy_drives_both_apart(measure: str) -> None:
    student = torch.tensor([[0.5, 0.0]], requires_grad=True)
    loss = Discrepancy(measure)  # type: ignore[arg-type]
    before = loss(student, SURE[1:], torch.zeros(1))
    before.backward()
    assert student.grad is not None
    assert loss(student - student.grad, SURE[1:], torch.zeros(1)) < before


def layer(mean: float, variance: float, of_data: tuple[float, float] = (1.0, 2.0)) -> Tensor:
    return torch.tensor([[[mean] * 4, [variance] * 4], [[of_data[0]] * 4, [of_data[1]] * 4]])


def test_statistics_by_hand() -> None:
    # Norms over 4 channels: 2 x the difference; of mean, then of variance, then the next layer.
    assert batch_norm_statistics([layer(4, 2), layer(1, 7)]).item() == 2 * 3 + 2 * 5


def test_statistics_that_agree_cost_nothing_and_have_a_finite_gradient() -> None:
    same = layer(1, 2).requires_grad_()
    loss = batch_norm_statistics([same])
    loss.backward()
    assert loss.item() == 0
    assert same.grad is not None
    assert same.grad.isfinite().all()


def test_losses_ask_of_the_student_only_what_they_use() -> None:
    assert [loss.student_tap for loss in (OneHot, Activation, ClassBalance, BatchNormStatistics)] == [()] * 4
    assert Discrepancy.student_tap == "logits"
    assert Activation.teacher_tap == "embedding"
    assert BatchNormStatistics.teacher_tap == "batch_norms"


def test_modules_are_their_functions() -> None:
    drawn = torch.tensor([1, 1])
    assert OneHot()([], SURE, drawn) == one_hot(SURE)
    assert OneHot("drawn")([], SURE, drawn) == one_hot(SURE, drawn)
    assert Activation()([], SURE, drawn) == activation(SURE)
    assert ClassBalance()([], SURE, drawn) == class_balance(SURE)
    assert BatchNormStatistics()([], [layer(4, 2)], drawn) == 6


def test_faults() -> None:
    with pytest.raises(ValueError, match=r"^labels must be 'argmax' or 'drawn', got 'true'$"):
        OneHot("true")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^measure must be 'l1' or 'kl', got 'l2'$"):
        Discrepancy("l2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^temperature must be > 0, got 0$"):
        Discrepancy("kl", 0)
    with pytest.raises(ValueError, match=r"one shape, got \(1, 2\) and \(1, 3\)$"):
        discrepancy(torch.zeros(1, 2), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"^there is no batch normalisation"):
        batch_norm_statistics([])
    with pytest.raises(ValueError, match=r"must be \[2, 2, C\], got \(2, 3\)$"):
        batch_norm_statistics([torch.zeros(2, 3)])
