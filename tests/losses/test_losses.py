"""Losses by hand, against plain torch and against torchdistill."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kd_lightning.losses import CrossEntropy, HardLabel, Loss, SoftTarget, distillation_loss, soft_target
from kd_lightning.losses.soft_target import standardized

LOSSES = [CrossEntropy(), SoftTarget(4.0), SoftTarget(2.0, standardize=True), HardLabel()]


def logits(seed: int = 0, samples: int = 6, classes: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(samples, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_soft_target_by_hand() -> None:
    # T = 2 and two classes: p = sigmoid(half the difference); student 1/2, teacher 3/4
    student, teacher = torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]])
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert soft_target(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-6)


def test_distillation_loss_by_hand() -> None:
    student, teacher = torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]])
    kl = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    expected = 0.7 * kl + 0.3 * math.log(2)
    assert distillation_loss(student, teacher, torch.tensor([0]), T=2.0, alpha=0.7).item() == pytest.approx(expected)


def test_soft_target_is_torchdistills() -> None:
    kd = pytest.importorskip("torchdistill.losses.mid_level").KDLoss
    student, teacher, target = logits(1), logits(2), torch.arange(6) % 5
    theirs = kd("s", "logits", "t", "logits", temperature=4.0, alpha=0.1, beta=0.9, reduction="batchmean")
    value = theirs({"s": {"logits": student}}, {"t": {"logits": teacher}}, target)
    ours = distillation_loss(student, teacher, target, T=4.0, alpha=0.9)
    assert value.item() == pytest.approx(ours.item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_distillation_loss_is_the_textbooks(temperature: float) -> None:
    student, teacher, target = logits(3), logits(4), torch.arange(6) % 5
    kl = F.kl_div(F.log_softmax(student / temperature, 1), F.softmax(teacher / temperature, 1), reduction="batchmean")
    expected = 0.6 * temperature**2 * kl + 0.4 * F.cross_entropy(student, target)
    assert distillation_loss(student, teacher, target, temperature, 0.6).item() == pytest.approx(
        expected.item(), rel=1e-4
    )


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = logits(1).requires_grad_(), logits(2).requires_grad_()
    distillation_loss(student, teacher, torch.zeros(6, dtype=torch.int64)).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


@given(st.floats(0.5, 20), st.integers(2, 12), st.integers(1, 8))
def test_soft_target_is_zero_at_equality_and_positive_elsewhere(temperature: float, classes: int, samples: int) -> None:
    teacher = logits(0, samples, classes)
    assert abs(soft_target(teacher, teacher, temperature).item()) < 1e-4
    assert soft_target(logits(1, samples, classes), teacher, temperature).item() > 0


def test_standardized_by_hand() -> None:
    # mean 2, unbiased standard deviation 1
    assert torch.allclose(standardized(torch.tensor([[1.0, 2.0, 3.0]])), torch.tensor([[-1.0, 0.0, 1.0]]))
    student, teacher = logits(1), logits(2)
    assert torch.allclose(
        SoftTarget(2.0, standardize=True)(3 * student + 7, teacher, torch.zeros(6)),
        SoftTarget(2.0, standardize=True)(student, teacher, torch.zeros(6)),
        atol=1e-5,
    )
    with pytest.raises(ValueError, match="at least 2 classes"):
        standardized(torch.zeros(3, 1))


def test_cross_entropy_takes_mixed_targets() -> None:
    student = logits(1)
    mixed = torch.full((6, 5), 0.2)
    expected = -(0.2 * student.log_softmax(1)).sum(1).mean()
    assert CrossEntropy()(student, None, mixed).item() == pytest.approx(expected.item())


def test_label_smoothing_by_hand() -> None:
    student = torch.tensor([[math.log(3), 0.0]])  # p = 3/4, 1/4
    smoothed = -(0.95 * math.log(0.75) + 0.05 * math.log(0.25))
    assert CrossEntropy(0.1)(student, None, torch.tensor([0])).item() == pytest.approx(smoothed)
    assert HardLabel(0.1)(student, student, torch.tensor([1])).item() == pytest.approx(smoothed)


def test_hard_label_follows_the_teacher() -> None:
    student, teacher = logits(1), logits(2)
    expected = F.cross_entropy(student, teacher.argmax(1))
    assert HardLabel()(student, teacher, torch.zeros(6, dtype=torch.int64)).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_gradient_is_right(loss: nn.Module) -> None:
    student = logits(1, dtype=torch.float64).requires_grad_()
    teacher, target = logits(2, dtype=torch.float64), torch.arange(6) % 5
    assert torch.autograd.gradcheck(lambda z: loss(z, teacher, target), (student,))


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_twenty_steps_lower_it(loss: nn.Module) -> None:
    student, teacher, target = nn.Parameter(logits(1)), logits(2), torch.arange(6) % 5
    optimizer = torch.optim.SGD([student], 0.5)
    values = []
    for _ in range(20):
        value = loss(student, teacher, target)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0]


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("samples", "classes"), [(1, 2), (3, 7)])
def test_half_precision_is_finite(loss: nn.Module, dtype: torch.dtype, samples: int, classes: int) -> None:
    student = (20 * logits(1, samples, classes)).to(dtype).requires_grad_()
    value = loss(student, (20 * logits(2, samples, classes)).to(dtype), torch.arange(samples) % classes)
    value.backward()
    assert torch.isfinite(value)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_order_of_the_batch_does_not_matter(loss: nn.Module) -> None:
    student, teacher, target, order = logits(1), logits(2), torch.arange(6) % 5, torch.tensor([3, 1, 5, 0, 2, 4])
    assert loss(student, teacher, target).item() == pytest.approx(
        loss(student[order], teacher[order], target[order]).item(), rel=1e-5
    )


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"temperature must be > 0, got -1.0"):
        SoftTarget(-1.0)
    with pytest.raises(ValueError, match=r"temperature must be > 0, got 0"):
        distillation_loss(logits(), logits(), torch.zeros(6), T=0)
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\], got 1.5"):
        distillation_loss(logits(), logits(), torch.zeros(6), alpha=1.5)
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\), got 1"):
        CrossEntropy(1)
    with pytest.raises(ValueError, match=r"one shape, got \(6, 5\) and \(6, 4\)"):
        soft_target(logits(), logits(classes=4))


def test_a_loss_says_what_it_taps() -> None:
    assert (CrossEntropy.student_tap, CrossEntropy.teacher_tap) == ("logits", None)
    assert (SoftTarget.student_tap, SoftTarget.teacher_tap) == ("logits", "logits")
    assert Loss().build([], []) is None
