import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses import CrossEntropy, TeacherFree
from kd_lightning.losses.teacher_free import teacher_free, virtual_teacher


def gradient(loss: Tensor, student: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, student)
    return found


def test_the_virtual_teacher() -> None:
    assert virtual_teacher(torch.tensor([2, 0]), 4, 0.7).tolist() == [
        pytest.approx([0.1, 0.1, 0.7, 0.1]), pytest.approx([0.7, 0.1, 0.1, 0.1])
    ]  # fmt: skip


def test_a_value_by_hand() -> None:
    student, correct, temperature = [0.5, -1.0, 2.0], 0.8, 2.0
    v = [0.1**0.5, 0.8**0.5, 0.1**0.5]
    p_v = [x / sum(v) for x in v]
    e = [math.exp(z / temperature) for z in student]
    p_s = [x / sum(e) for x in e]
    expected = temperature**2 * sum(t * math.log(t / s) for t, s in zip(p_v, p_s, strict=True))
    value = TeacherFree(correct, temperature)(torch.tensor([student]), None, torch.tensor([1]))
    assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("mixed", [False, True])
def test_label_smoothing_is_its_special_case(smoothing: float, mixed: bool) -> None:
    classes = 6
    student = torch.randn(5, classes, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 5, 2, 2, 1])
    if mixed:
        target = 0.3 * F.one_hot(target, classes).double() + 0.7 * F.one_hot(target.flip(0), classes).double()
    correct = 1 - smoothing + smoothing / classes
    ours = TeacherFree(correct, temperature=1.0)(student, None, target)
    smooth = CrossEntropy(smoothing)(student, None, target)
    v = virtual_teacher(target, classes, correct).double()
    torch.testing.assert_close(ours, smooth + (v * v.log()).sum(1).mean(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(gradient(ours, student), gradient(smooth, student), rtol=1e-6, atol=1e-8)


def test_it_is_zero_and_least_at_the_virtual_teacher() -> None:
    target = torch.tensor([0, 2, 1])
    same = virtual_teacher(target, 3, 0.9).double().log().requires_grad_()
    value = TeacherFree(0.9, 20.0)(same, None, target)
    assert value.item() == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(gradient(value, same), torch.zeros(3, 3).double(), rtol=0, atol=1e-7)
    assert TeacherFree(0.9, 20.0)(torch.randn(3, 3), None, target) > 0.01


def test_twenty_steps_lower_it() -> None:
    student, target = torch.randn(8, 5, requires_grad=True), torch.arange(8) % 5
    loss = TeacherFree()
    optimizer = torch.optim.SGD([student], 0.5)
    first = loss(student, None, target).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss(student, None, target).backward()
        optimizer.step()
    assert loss(student, None, target).item() < 0.9 * first


def test_half_precision_is_computed_in_float32() -> None:
    student, target = torch.randn(4, 5).bfloat16(), torch.arange(4)
    assert torch.equal(teacher_free(student, target), teacher_free(student.float(), target))


@pytest.mark.parametrize(
    ("correct", "temperature", "message"),
    [
        (0.0, 1.0, r"correct must be in \(0, 1\), got 0\.0"),
        (1.0, 1.0, r"correct must be in \(0, 1\), got 1\.0"),
        (0.9, 0.0, r"temperature must be > 0, got 0\.0"),
    ],
)
def test_a_bad_argument_is_named(correct: float, temperature: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TeacherFree(correct, temperature)


def test_a_teacher_that_would_not_know_the_class() -> None:
    with pytest.raises(ValueError, match=r"correct must be above 1 / C, which is 0\.5000, got 0\.5"):
        TeacherFree(0.5)(torch.zeros(1, 2), None, torch.zeros(1).long())
