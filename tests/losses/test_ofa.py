import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses import OFA
from kd_lightning.losses.ofa import target_enhanced

# What holds of every loss of logits (precision, constants, one class, the order of the batch, ...): test_logits.py.


def pair(samples: int = 6, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    student, teacher = 3 * torch.randn(samples, classes).double(), 3 * torch.randn(samples, classes).double()
    return student, teacher, torch.randint(classes, (samples,))


# p_t = (1/2, 3/8, 1/8), p_s = (1/4, 1/4, 1/2), label 0, -log p_s = (2, 2, 1) ln 2.
# eps = 1: (1/2, 3/8, 1/8), so 1.875 ln 2 = 1.2996510.
# eps = 2: (9/4 - 1, 9/64, 1/64), so (2.5 + 18/64 + 1/64) ln 2 = 2.796875 ln 2 = 1.9386460.
# eps = 1.5: (1.8371173 - 1, 0.2296397, 0.0441942), so (1.6742346 + 0.4592793 + 0.0441942) ln 2 = 1.5094723.
TEACHER, STUDENT, LABEL = torch.tensor([[4.0, 3, 1]]).log(), torch.tensor([[1.0, 1, 2]]).log(), torch.tensor([0])


@pytest.mark.parametrize(("eps", "expected"), [(1.0, 1.2996510), (1.5, 1.5094723), (2.0, 1.9386460)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_by_hand(eps: float, expected: float, temperature: float) -> None:
    # There is no T^2.
    value = OFA(eps, temperature)(temperature * STUDENT, temperature * TEACHER, LABEL)
    assert value.item() == pytest.approx(expected, abs=1e-5)


def test_the_defaults() -> None:
    for value in (OFA()(STUDENT, TEACHER, LABEL), target_enhanced(STUDENT, TEACHER, LABEL)):
        assert value.item() == pytest.approx(1.5094723, abs=1e-6)


def test_the_batch_is_averaged() -> None:
    # The second sample is uniform: ((4/3)^1.5 - 1 + 2 (1/3)^1.5) ln 3 = 1.0156680.
    student, teacher = torch.cat([STUDENT, torch.zeros(1, 3)]), torch.cat([TEACHER, torch.zeros(1, 3)])
    value = OFA()(student, teacher, torch.tensor([0, 1]))
    second = ((4 / 3) ** 1.5 - 1 + 2 * (1 / 3) ** 1.5) * math.log(3)
    assert value.item() == pytest.approx((1.5094723 + second) / 2, abs=1e-6)


@pytest.mark.parametrize("eps", [0.5, 1.5, 3.0])
def test_against_loops(eps: float) -> None:
    student, teacher, label = pair()
    total = 0.0
    for z_s, z_t, y in zip((student / 2).tolist(), (teacher / 2).tolist(), label.tolist(), strict=True):
        sum_s, sum_t = sum(map(math.exp, z_s)), sum(map(math.exp, z_t))
        for c in range(5):
            p_t, log_p_s = math.exp(z_t[c]) / sum_t, z_s[c] - math.log(sum_s)
            total -= ((p_t + 1) ** eps - 1 if c == y else p_t**eps) * log_p_s
    assert OFA(eps, 2.0)(student, teacher, label).item() == pytest.approx(total / 6, rel=1e-9)


def test_eps_1_is_the_cross_entropy_with_the_teacher() -> None:
    student, teacher, label = pair()
    expected = F.cross_entropy(student, F.softmax(teacher, dim=1))
    torch.testing.assert_close(OFA(1.0)(student, teacher, label), expected)


def test_a_teacher_that_is_sure_of_the_label_gives_a_multiple_of_cross_entropy() -> None:
    # p_t = 1_y: the weight of the label is 2^eps - 1, that of the others 0.
    student, _, label = pair()
    value = OFA(1.5)(student, 1000.0 * F.one_hot(label, 5).double(), label)
    torch.testing.assert_close(value, (2**1.5 - 1) * F.cross_entropy(student, label))


def test_at_equality_it_is_neither_zero_nor_the_minimum() -> None:
    same, label = TEACHER.clone().requires_grad_(), LABEL
    value = OFA()(same, TEACHER, label)
    value.backward()
    # 0.8371173 ln 2 + 0.2296397 ln 8/3 + 0.0441942 ln 8 = 0.5802456 + 0.2252376 + 0.0918993.
    assert value.item() == pytest.approx(0.8973825, abs=1e-5)
    assert same.grad is not None
    assert same.grad[0, 0] < -0.1  # the label is to rise above the teacher
    # The minimum is at the enhanced weights, made to sum to 1.
    weights = torch.tensor([[0.8371173, 0.2296397, 0.0441942]])
    best = weights.log().requires_grad_()
    OFA()(best, TEACHER, label).backward()
    torch.testing.assert_close(best.grad, torch.zeros(1, 3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("eps", [0.5, 1.0, 1.5])
def test_gradcheck(eps: float) -> None:
    student, teacher, label = pair(3, 4)
    assert torch.autograd.gradcheck(
        lambda s, t: target_enhanced(s, t, label, eps, 2.0), (student.requires_grad_(), teacher.requires_grad_())
    )


def test_a_mixed_target_uses_its_largest_class() -> None:
    student, teacher, _ = pair(2, 3)
    mixed = torch.tensor([[0.4, 0.35, 0.25], [0.1, 0.4, 0.5]])
    torch.testing.assert_close(OFA()(student, teacher, mixed), OFA()(student, teacher, torch.tensor([0, 2])))


def test_one_class_is_always_right() -> None:
    assert OFA()(torch.randn(4, 1), torch.randn(4, 1), torch.zeros(4, dtype=torch.int64)).item() == 0


@pytest.mark.parametrize("eps", [0.0, -1.0, float("inf"), float("nan")])
def test_a_bad_eps_is_named(eps: float) -> None:
    with pytest.raises(ValueError, match=f"^eps must be > 0 and finite, got {eps}$"):
        OFA(eps)


def test_a_bad_temperature_is_named() -> None:
    with pytest.raises(ValueError, match=r"^temperature must be > 0, got 0.0$"):
        OFA(temperature=0.0)
