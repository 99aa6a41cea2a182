import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses import NKD
from kd_lightning.losses.nkd import normalized_distillation

# What holds of every loss of logits (precision, constants, one class, the order of the batch, ...): test_logits.py.


def pair(samples: int = 6, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    student, teacher = 3 * torch.randn(samples, classes).double(), 3 * torch.randn(samples, classes).double()
    return student, teacher, torch.randint(classes, (samples,))


# p_t = (1/2, 3/8, 1/8), p_s = (1/4, 1/4, 1/2), label 0: the label's part is 0.5 ln 4 = 0.6931472, the others' with
# (3/4, 1/4) and (1/3, 2/3) is 0.75 ln 3 + 0.25 ln 1.5 = 0.9253255.
TEACHER, STUDENT, LABEL = torch.tensor([[4.0, 3, 1]]).log(), torch.tensor([[1.0, 1, 2]]).log(), torch.tensor([0])


@pytest.mark.parametrize(("gamma", "expected"), [(0.0, 0.6931472), (1.0, 1.6184727), (1.5, 2.0811354)])
def test_by_hand(gamma: float, expected: float) -> None:
    assert NKD(gamma)(STUDENT, TEACHER, LABEL).item() == pytest.approx(expected, abs=1e-6)


def test_the_defaults() -> None:
    for value in (NKD()(STUDENT, TEACHER, LABEL), normalized_distillation(STUDENT, TEACHER, LABEL)):
        assert value.item() == pytest.approx(2.0811354, abs=1e-6)


def test_the_temperature_is_of_the_other_classes_alone() -> None:
    # At T = 2 the others are (3, 1) and (1, 2) again; at T = 1 the label has 10 of 20 and 5/3 of 20/3, so 1/2 and 1/4:
    # 0.6931472 + 1.5 * 4 * 0.9253255.
    teacher, student = torch.tensor([[10.0, 9, 1]]).log(), torch.tensor([[5 / 3, 1, 4]]).log()
    assert NKD(temperature=2.0)(student, teacher, LABEL).item() == pytest.approx(6.2451, abs=1e-5)


def test_the_batch_is_averaged() -> None:
    # The second sample, uniform over 3 for both: ln 3 / 3 + 1.5 ln 2 = 1.4059250.
    student, teacher = torch.cat([STUDENT, torch.zeros(1, 3)]), torch.cat([TEACHER, torch.zeros(1, 3)])
    value = NKD()(student, teacher, torch.tensor([0, 2]))
    assert value.item() == pytest.approx((2.0811354 + 1.4059250) / 2, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_against_loops(temperature: float) -> None:
    student, teacher, label = pair()
    own = rest = 0.0
    for z_s, z_t, y in zip(student.tolist(), teacher.tolist(), label.tolist(), strict=True):
        p_t, p_s = math.exp(z_t[y]) / sum(map(math.exp, z_t)), math.exp(z_s[y]) / sum(map(math.exp, z_s))
        own -= p_t * math.log(p_s)
        e_s = {c: math.exp(z / temperature) for c, z in enumerate(z_s) if c != y}
        e_t = {c: math.exp(z / temperature) for c, z in enumerate(z_t) if c != y}
        rest -= sum(e_t[c] / sum(e_t.values()) * math.log(e_s[c] / sum(e_s.values())) for c in e_s)
    expected = (own + 0.7 * temperature**2 * rest) / 6
    assert NKD(0.7, temperature)(student, teacher, label).item() == pytest.approx(expected, rel=1e-9)


def test_at_equality_it_is_a_mixture_of_entropies_and_no_minimum() -> None:
    teacher, label = torch.randn(4, 5).double(), torch.arange(4)
    p_t = F.softmax(teacher, dim=1).gather(1, label[:, None])
    rest = [torch.cat([z[:y], z[y + 1 :]]) for y, z in enumerate(teacher)]
    entropy = torch.stack([torch.distributions.Categorical(logits=z).entropy() for z in rest]).mean()
    same = teacher.clone().requires_grad_()
    value = NKD()(same, teacher, label)
    torch.testing.assert_close(value, -(p_t * p_t.log()).mean() + 1.5 * entropy)
    # The other classes are at their minimum; the label's logit is still to rise, by p_t (1 - p_t) / N.
    value.backward()
    assert same.grad is not None
    torch.testing.assert_close(same.grad.gather(1, label[:, None]), -p_t * (1 - p_t) / 4)


def test_the_other_classes_are_best_at_equality() -> None:
    student, teacher, label = pair()
    same = teacher.clone().requires_grad_()
    # Without the label's part: the difference of gamma = 1 and gamma = 0.
    rest = NKD(1.0)(same, teacher, label) - NKD(0.0)(same, teacher, label)
    rest.backward()
    torch.testing.assert_close(same.grad, torch.zeros_like(teacher))
    assert NKD(1.0)(student, teacher, label) - NKD(0.0)(student, teacher, label) > rest + 0.1


def test_gradcheck() -> None:
    student, teacher, label = pair(3, 4)
    assert torch.autograd.gradcheck(
        lambda s, t: normalized_distillation(s, t, label, 1.5, 2.0),
        (student.requires_grad_(), teacher.requires_grad_()),
    )


def test_a_mixed_target_uses_its_largest_class() -> None:
    student, teacher, _ = pair(2, 3)
    mixed = torch.tensor([[0.4, 0.35, 0.25], [0.1, 0.4, 0.5]])
    torch.testing.assert_close(NKD()(student, teacher, mixed), NKD()(student, teacher, torch.tensor([0, 2])))


def test_two_classes_leave_the_label_alone() -> None:
    student, teacher, label = pair(4, 2)
    torch.testing.assert_close(NKD(5.0)(student, teacher, label), NKD(0.0)(student, teacher, label))


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"logits must be \[N, C\] with C >= 2, got \(4, 1\)"):
        NKD()(torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": -1.0}, "gamma must be >= 0 and finite, got -1.0"),
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
    ],
)
def test_a_bad_argument_is_named(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        NKD(**arguments)
