import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kd_lightning.losses import DKD, SoftTarget
from kd_lightning.losses.dkd import decoupled
from kd_lightning.losses.logits import standardized

# What holds of every loss of logits (precision, constants, one class, the order of the batch, ...): test_logits.py.


def pair(samples: int = 6, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    student, teacher = 3 * torch.randn(samples, classes).double(), 3 * torch.randn(samples, classes).double()
    return student, teacher, torch.randint(classes, (samples,))


# p_t = (1/2, 3/8, 1/8), p_s = (1/4, 1/4, 1/2), label 0:
# TCKD = KL((1/2, 1/2) || (1/4, 3/4)) = 0.5 ln 2 + 0.5 ln 2/3 = 0.1438410,
# NCKD = KL((3/4, 1/4) || (1/3, 2/3)) = 0.75 ln 9/4 + 0.25 ln 3/8 = 0.3629903.
TEACHER, STUDENT, LABEL = (
    torch.tensor([[4.0, 3.0, 1.0]]).log(),
    torch.tensor([[1.0, 1.0, 2.0]]).log(),
    torch.tensor([0]),
)


@pytest.mark.parametrize(
    ("alpha", "beta", "expected"), [(1, 0, 0.1438410), (0, 1, 0.3629903), (1, 8, 3.0477634), (0, 0, 0.0)]
)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_by_hand(alpha: float, beta: float, expected: float, temperature: float) -> None:
    value = decoupled(temperature * STUDENT, temperature * TEACHER, LABEL, alpha, beta, temperature)
    assert value.item() == pytest.approx(temperature**2 * expected, rel=1e-5, abs=1e-6)


def test_the_defaults() -> None:
    # T = 4, alpha = 1, beta = 8: 16 * 3.0477634.
    for value in (decoupled(4 * STUDENT, 4 * TEACHER, LABEL), DKD()(4 * STUDENT, 4 * TEACHER, LABEL)):
        assert value.item() == pytest.approx(48.764214, rel=1e-5)


def test_the_batch_is_averaged() -> None:
    student, teacher = torch.cat([STUDENT, torch.zeros(1, 3)]), torch.cat([TEACHER, torch.ones(1, 3)])
    value = decoupled(student, teacher, torch.tensor([0, 2]), 1.0, 8.0, 1.0)
    assert value.item() == pytest.approx(3.0477634 / 2, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_against_loops(temperature: float) -> None:
    student, teacher, label = pair()
    target_class = other_classes = 0.0
    for z_s, z_t, y in zip(student.tolist(), teacher.tolist(), label.tolist(), strict=True):
        e_s, e_t = [math.exp(z / temperature) for z in z_s], [math.exp(z / temperature) for z in z_t]
        own_s, own_t = e_s[y] / sum(e_s), e_t[y] / sum(e_t)
        target_class += own_t * math.log(own_t / own_s) + (1 - own_t) * math.log((1 - own_t) / (1 - own_s))
        rest_s, rest_t = sum(e_s) - e_s[y], sum(e_t) - e_t[y]
        for c in range(5):
            if c != y:
                other_classes += e_t[c] / rest_t * math.log((e_t[c] / rest_t) / (e_s[c] / rest_s))
    expected = temperature**2 * (0.5 * target_class + 2.0 * other_classes) / 6
    assert decoupled(student, teacher, label, 0.5, 2.0, temperature).item() == pytest.approx(expected, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(classes=st.integers(2, 12), temperature=st.floats(0.5, 10), seed=st.integers(0, 2**16))
def test_soft_targets_are_the_two_parts_with_beta_by_the_teacher(classes: int, temperature: float, seed: int) -> None:
    # KL = TCKD + (1 - p_t[y]) NCKD, sample by sample: what the paper decouples.
    student, teacher = 3 * torch.randn(2, 1, classes, generator=torch.Generator().manual_seed(seed)).double()
    label = torch.tensor([seed % classes])
    beta = 1 - F.softmax(teacher / temperature, dim=1)[0, label].item()
    expected = SoftTarget(temperature)(student, teacher, label)
    torch.testing.assert_close(decoupled(student, teacher, label, 1.0, beta, temperature), expected)


def test_the_other_classes_do_not_see_the_logit_of_the_label() -> None:
    student, teacher, label = pair()
    moved = student + 5 * F.one_hot(label, 5)
    torch.testing.assert_close(decoupled(moved, teacher, label, alpha=0), decoupled(student, teacher, label, alpha=0))
    assert decoupled(moved, teacher, label, beta=0) != decoupled(student, teacher, label, beta=0)


@pytest.mark.parametrize("standardize", [False, True])
def test_the_minimum_is_zero_at_equality(standardize: bool) -> None:
    student, teacher, label = pair()
    loss, same = DKD(standardize=standardize), teacher.clone().requires_grad_()
    value = loss(same, teacher, label)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(same.grad, torch.zeros_like(teacher))
    assert loss(student, teacher, label) > 0.1


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.0, 1.0), (1.0, 8.0)])
def test_gradcheck(alpha: float, beta: float) -> None:
    student, teacher, label = pair(3, 4)
    assert torch.autograd.gradcheck(
        lambda s, t: decoupled(s, t, label, alpha, beta, 2.0), (student.requires_grad_(), teacher.requires_grad_())
    )


def test_standardized_logits_are_what_is_compared() -> None:
    student, teacher, label = pair()
    expected = decoupled(standardized(student), standardized(teacher), label, 1.0, 2.0, 2.0)
    loss = DKD(beta=2.0, temperature=2.0, standardize=True)
    torch.testing.assert_close(loss(student, teacher, label), expected)
    torch.testing.assert_close(loss(7 * student + 1, teacher / 3, label), expected)  # but for the 1e-7
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, label), (student.requires_grad_(),))


def test_a_mixed_target_uses_its_largest_class() -> None:
    student, teacher, _ = pair(2, 3)
    mixed = torch.tensor([[0.4, 0.35, 0.25], [0.1, 0.4, 0.5]])
    torch.testing.assert_close(decoupled(student, teacher, mixed), decoupled(student, teacher, torch.tensor([0, 2])))


def test_two_classes_leave_the_target_class_alone() -> None:
    # One other class has the whole rest, for both: NCKD is 0, and the binary KL is all of KL.
    student, teacher, label = pair(4, 2)
    torch.testing.assert_close(DKD(beta=8.0)(student, teacher, label), SoftTarget(4.0)(student, teacher, label))


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"logits must be \[N, C\] with C >= 2, got \(4, 1\)"):
        DKD()(torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64))


def test_a_sure_teacher_stays_finite() -> None:
    # All but nothing is left for the other classes, and their own distribution is still exact.
    teacher = torch.tensor([[200.0, math.log(3), 0.0]])
    student = torch.zeros(1, 3, requires_grad=True)
    value = decoupled(student, teacher, LABEL, 0.0, 1.0, 1.0)
    value.backward()
    assert value.item() == pytest.approx(0.1308120, abs=1e-6)  # KL((3/4, 1/4) || (1/2, 1/2))
    torch.testing.assert_close(student.grad, torch.tensor([[0.0, -0.25, 0.25]]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": -1.0}, "alpha must be >= 0 and finite, got -1.0"),
        ({"beta": float("nan")}, "beta must be >= 0 and finite, got nan"),
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
    ],
)
def test_a_bad_argument_is_named(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        DKD(**arguments)
