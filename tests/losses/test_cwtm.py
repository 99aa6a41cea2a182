import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses import CWTM

# p_t = (1/2, 3/8, 1/8) and (1/4, 1/4, 1/2), the largest 1/2; (4/5, 1/10, 1/10), the largest 4/5.
TEACHER = torch.tensor([[4.0, 3, 1], [8, 1, 1]]).log()
STUDENT = torch.tensor([[1.0, 1, 2], [3, 1, 4]]).log()
LABEL = torch.tensor([0, 1])


def pair(samples: int = 6, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    student, teacher = 3 * torch.randn(samples, classes).double(), 3 * torch.randn(samples, classes).double()
    return student, teacher, torch.randint(classes, (samples,))


def test_by_hand() -> None:
    # Cross entropies ln 4 and ln 8, weights 0.5 and 0.8.
    expected = (0.5 * math.log(4) + 0.8 * math.log(8)) / 1.3
    assert CWTM()(STUDENT, TEACHER, LABEL).item() == pytest.approx(expected, rel=1e-6)


def test_a_mixed_target_by_hand() -> None:
    # Half of each of the first two classes: (ln 4 + ln 4) / 2, and (ln (8/3) + ln 8) / 2.
    target = torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0]])
    expected = (0.5 * math.log(4) + 0.8 * (math.log(8 / 3) + math.log(8)) / 2) / 1.3
    assert CWTM()(STUDENT, TEACHER, target).item() == pytest.approx(expected, rel=1e-6)


def test_against_loops() -> None:
    student, teacher, label = pair()
    weights, total = [], 0.0
    for z_s, z_t, y in zip(student.tolist(), teacher.tolist(), label.tolist(), strict=True):
        weight = math.exp(max(z_t)) / sum(math.exp(x) for x in z_t)
        total += weight * (math.log(sum(math.exp(x) for x in z_s)) - z_s[y])
        weights.append(weight)
    assert CWTM()(student, teacher, label).item() == pytest.approx(total / sum(weights), rel=1e-9)


def test_a_teacher_that_is_equally_sure_of_all_makes_it_the_cross_entropy() -> None:
    student, teacher, label = pair()
    same = teacher[0].expand(6, 5)[:, torch.randperm(5)]
    torch.testing.assert_close(CWTM()(student, same, label), F.cross_entropy(student, label))
    assert abs(CWTM()(student, teacher, label) - F.cross_entropy(student, label)) > 1e-3


def test_only_how_sure_the_teacher_is_matters() -> None:
    student, teacher, label = pair()
    moved = torch.stack([row[torch.randperm(5)] for row in teacher])
    torch.testing.assert_close(CWTM()(student, moved, label), CWTM()(student, teacher, label))


def test_gradient_is_that_of_weighted_labels() -> None:
    student, teacher, label = pair()
    weight = teacher.softmax(dim=1).amax(dim=1)
    expected = (weight / weight.sum())[:, None] * (student.softmax(dim=1) - F.one_hot(label, 5))
    student.requires_grad_()
    CWTM()(student, teacher, label).backward()
    torch.testing.assert_close(student.grad, expected)


def test_steps_lower_it_to_0() -> None:
    student, teacher, label = pair()
    student.requires_grad_()
    optimizer = torch.optim.SGD([student], 5.0)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        value = CWTM()(student, teacher, label)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.05 * values[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher, label = pair()
    value = CWTM()(student.to(dtype), teacher.to(dtype), label)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, CWTM()(student.to(dtype).float(), teacher.to(dtype).float(), label))


def test_extreme_logits_stay_finite() -> None:
    student = torch.tensor([[1000.0, 0, 0], [0, 0, -1000]], requires_grad=True)
    value = CWTM()(student, torch.tensor([[1000.0, 0, 0], [0, 0, 1000]]), LABEL)
    value.backward()
    assert value.item() == pytest.approx(math.log(2) / 2)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_other_classes_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"logits of one shape, got \(6, 5\) and \(6, 4\)"):
        CWTM()(torch.zeros(6, 5), torch.zeros(6, 4), torch.zeros(6, dtype=torch.int64))
