import math

import pytest
import torch
import torch.nn.functional as F

from kd_lightning.losses import HardLabel

LN3 = math.log(3)


def test_by_hand() -> None:
    student = torch.tensor([[LN3, 0.0], [LN3, 0.0]])
    teacher = torch.tensor([[9.0, 1.0], [-2.0, -1.0]])  # decides 0, then 1
    loss = HardLabel()(student, teacher, torch.tensor([1, 0]))
    assert loss.item() == pytest.approx((0.2876821 + 1.3862944) / 2, abs=1e-6)


def test_label_smoothing_by_hand() -> None:
    student, teacher = torch.tensor([[LN3, 0.0]]), torch.tensor([[5.0, 1.0]])
    # The target becomes (0.95, 0.05).
    assert HardLabel(0.1)(student, teacher, torch.tensor([1])).item() == pytest.approx(0.3426127, abs=1e-6)


def test_the_labels_are_not_looked_at() -> None:
    student, teacher = torch.randn(5, 4), torch.randn(5, 4)
    losses = [HardLabel()(student, teacher, torch.full((5,), label)) for label in range(4)]
    assert all(torch.equal(loss, losses[0]) for loss in losses)


def test_only_the_decision_counts() -> None:
    student, teacher = torch.randn(5, 4), torch.randn(5, 4)
    target = torch.zeros(5, dtype=torch.int64)
    assert torch.equal(HardLabel()(student, teacher, target), HardLabel()(student, 7 * teacher + 3, target))


def test_it_is_least_for_a_sure_student_of_the_same_mind() -> None:
    teacher, target = torch.randn(5, 4), torch.zeros(5, dtype=torch.int64)
    sure = 100.0 * F.one_hot(teacher.argmax(1), 4)
    assert HardLabel()(sure, teacher, target).item() == pytest.approx(0, abs=1e-6)


def test_the_gradient_reaches_the_student_alone() -> None:
    student, teacher = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    HardLabel()(student, teacher, torch.tensor([0, 1, 2])).backward()
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_gradcheck() -> None:
    student = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    teacher, target = torch.randn(3, 4).double(), torch.tensor([0, 1, 2])
    assert torch.autograd.gradcheck(lambda z: HardLabel(0.1)(z, teacher, target), (student,))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_a_bad_label_smoothing_is_named(smoothing: float) -> None:
    with pytest.raises(ValueError, match=rf"label_smoothing must be in \[0, 1\), got {smoothing}"):
        HardLabel(smoothing)
