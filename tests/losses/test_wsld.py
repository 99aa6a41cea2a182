import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses import WSLD
from kd_lightning.losses.wsld import weighted_soft_labels

# What holds of every loss of logits (precision, constants, one class, the order of the batch, ...): test_logits.py.


def pair(samples: int = 6, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    student, teacher = 3 * torch.randn(samples, classes).double(), 3 * torch.randn(samples, classes).double()
    return student, teacher, torch.randint(classes, (samples,))


# p_t = (1/2, 3/8, 1/8), p_s = (1/4, 1/4, 1/2), label 0: CE_s / CE_t = ln 4 / ln 2 = 2, w = 1 - exp(-2) = 0.8646647;
# the soft cross entropy is (2/2 + 2 * 3/8 + 1/8) ln 2 = 1.2996510.
TEACHER, STUDENT, LABEL = torch.tensor([[4.0, 3, 1]]).log(), torch.tensor([[1.0, 1, 2]]).log(), torch.tensor([0])


@pytest.mark.parametrize(("alpha", "expected"), [(1.0, 1.1237624), (2.5, 2.8094059), (0.0, 0.0)])
def test_by_hand(alpha: float, expected: float) -> None:
    assert WSLD(1.0, alpha)(STUDENT, TEACHER, LABEL).item() == pytest.approx(expected, abs=1e-5)


def test_the_defaults_and_that_the_weight_knows_no_temperature() -> None:
    # z_t = (0, 0), z_s = (0, 2 ln 3), label 0.
    # At T = 1: CE_s = ln 10, CE_t = ln 2, w = 1 - exp(-3.3219281) = 0.9639167.
    # At T = 2: p_s = (1/4, 3/4), soft cross entropy (ln 4 + ln 4/3) / 2 = 0.8369882. 2.5 * 4 * w * 0.8369882.
    teacher, student = torch.zeros(1, 2), torch.tensor([[0.0, 2 * math.log(3)]])
    for value in (WSLD()(student, teacher, LABEL), weighted_soft_labels(student, teacher, LABEL)):
        assert value.item() == pytest.approx(8.0678690, abs=1e-4)


def test_the_batch_is_averaged() -> None:
    # The second sample, uniform for both: w = 1 - 1/e = 0.6321206, cross entropy ln 3.
    student, teacher = torch.cat([STUDENT, torch.zeros(1, 3)]), torch.cat([TEACHER, torch.zeros(1, 3)])
    value = WSLD(1.0, 1.0)(student, teacher, torch.tensor([0, 1]))
    assert value.item() == pytest.approx((1.1237624 + 0.6321206 * math.log(3)) / 2, abs=1e-5)


def test_against_loops() -> None:
    student, teacher, label = pair()

    def log_softmax(z: list[float], temperature: float) -> list[float]:
        total = math.log(sum(math.exp(x / temperature) for x in z))
        return [x / temperature - total for x in z]

    total = 0.0
    for z_s, z_t, y in zip(student.tolist(), teacher.tolist(), label.tolist(), strict=True):
        ce_s, ce_t = -log_softmax(z_s, 1)[y], -log_softmax(z_t, 1)[y]
        soft = -sum(math.exp(t) * s for s, t in zip(log_softmax(z_s, 3), log_softmax(z_t, 3), strict=True))
        total += (1 - math.exp(-ce_s / (ce_t + 1e-7))) * soft
    assert WSLD(3.0, 0.7)(student, teacher, label).item() == pytest.approx(0.7 * 9 * total / 6, rel=1e-9)


def test_no_gradient_flows_through_the_weight() -> None:
    # With w a constant, the gradient of the logits is alpha T^2 w (p_s - p_t) / T / N. A gradcheck of the whole would
    # rightly fail: the value does depend on w.
    student, teacher, label = pair()
    ce_s, ce_t = (F.cross_entropy(z, label, reduction="none") for z in (student, teacher))
    w = 1 - (-ce_s / (ce_t + 1e-7)).exp()
    expected = 2.5 * 2 * w[:, None] * (F.softmax(student / 2, dim=1) - F.softmax(teacher / 2, dim=1)) / 6
    student.requires_grad_()
    WSLD()(student, teacher, label).backward()
    torch.testing.assert_close(student.grad, expected)


def test_gradcheck_with_the_weight_held() -> None:
    # Where the teacher is all but certain of the label and the student is not, w is 1 to the last digit.
    student, teacher, label = pair(3, 4)
    teacher = torch.where(F.one_hot(label, 4) == 1, 60.0, teacher)
    student = torch.where(F.one_hot(label, 4) == 1, -3.0, student).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: weighted_soft_labels(s, teacher, label, 20.0), (student,))


def test_a_sample_that_the_student_knows_far_better_is_left_out() -> None:
    student = torch.tensor([[40.0, 0.0, 0.0]], requires_grad=True)
    value = WSLD()(student, torch.tensor([[-5.0, 0.0, 1.0]]), LABEL)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(student.grad, torch.zeros(1, 3))


@pytest.mark.parametrize(("student", "weight"), [(0.0, 1.0), (1000.0, 0.0)])
def test_a_teacher_without_any_error_divides_by_1e7_and_not_by_zero(student: float, weight: float) -> None:
    # CE_t = 0: w is 1 unless CE_s is 0 as well. p_t = (1, 0), so the soft cross entropy is CE_s, here ln 2 or 0.
    logits = torch.tensor([[student, 0.0]], requires_grad=True)
    value = WSLD(1.0, 1.0)(logits, torch.tensor([[1000.0, 0.0]]), LABEL)
    value.backward()
    assert value.item() == pytest.approx(weight * math.log(2), abs=1e-6)
    torch.testing.assert_close(logits.grad, weight * torch.tensor([[-0.5, 0.5]]))


def test_at_equality_it_is_a_share_of_the_entropy_with_gradient_0() -> None:
    teacher, label = torch.randn(4, 5).double(), torch.arange(4)
    same = teacher.clone().requires_grad_()
    value = WSLD(1.0, 1.0)(same, teacher, label)
    value.backward()
    # w = 1 - 1/e but for the 1e-7.
    entropy = torch.distributions.Categorical(logits=teacher).entropy().mean()
    torch.testing.assert_close(value, (1 - math.exp(-1)) * entropy, rtol=1e-5, atol=0)
    torch.testing.assert_close(same.grad, torch.zeros_like(teacher))


def test_a_mixed_target_is_taken_as_it_is_in_both_cross_entropies() -> None:
    # Label 0 with 3/4 and 2 with 1/4: CE_s = (3/4 * 2 + 1/4) ln 2 = 1.75 ln 2, CE_t = (3/4 + 3/4) ln 2 = 1.5 ln 2.
    value = WSLD(1.0, 1.0)(STUDENT, TEACHER, torch.tensor([[0.75, 0.0, 0.25]]))
    assert value.item() == pytest.approx((1 - math.exp(-7 / 6)) * 1.2996510, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_mixed_target_in_half_precision(dtype: torch.dtype) -> None:
    student, teacher, _ = pair(4, 5)
    mixed = torch.softmax(torch.randn(4, 5), dim=1)
    value = WSLD()(student.to(dtype), teacher.to(dtype), mixed.to(dtype))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, WSLD()(student, teacher, mixed.double()).float(), rtol=0.05, atol=0)


def test_one_class_is_always_right() -> None:
    assert WSLD()(torch.randn(4, 1), torch.randn(4, 1), torch.zeros(4, dtype=torch.int64)).item() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": -1.0}, "alpha must be >= 0 and finite, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be > 0, got nan"),
    ],
)
def test_a_bad_argument_is_named(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        WSLD(**arguments)
