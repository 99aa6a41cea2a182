import math
import os
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses import DKPP
from kd_lightning.losses.dkpp import permuted, permuted_soft_target

SAMPLES, CLASSES = 6, 5
INDEX, NUMBER = torch.arange(SAMPLES) * 11, torch.arange(SAMPLES) % 2
LABEL = torch.zeros(SAMPLES, dtype=torch.int64)


@pytest.fixture(autouse=True)
def of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")


def pair(samples: int = SAMPLES, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    return 3 * torch.randn(samples, classes).double(), 3 * torch.randn(samples, classes).double()


def probabilities(samples: int = SAMPLES, classes: int = CLASSES) -> Tensor:
    return torch.randn(samples, classes).double().softmax(dim=1)


def test_two_classes_leave_nothing_to_permute() -> None:
    student, teacher = pair(classes=2)
    expected = F.cross_entropy(student, teacher.softmax(dim=1))
    torch.testing.assert_close(DKPP()(student, teacher, LABEL, INDEX, NUMBER), expected)


def test_by_hand_it_is_one_of_the_two_orders_of_three_classes() -> None:
    # p_t = (1/2, 3/8, 1/8), p_s = (1/4, 1/4, 1/2): ln 4 times 1/2 + 3/8 and ln 2 / 8, or the two smaller swapped.
    teacher, student = torch.tensor([[4.0, 3, 1]]).log(), torch.tensor([[1.0, 1, 2]]).log()
    as_it_is, swapped = 7 / 8 * math.log(4) + math.log(2) / 8, 5 / 8 * math.log(4) + 3 / 8 * math.log(2)
    values = [
        DKPP()(student, teacher, LABEL[:1], torch.tensor([index]), torch.tensor([0])).item() for index in range(40)
    ]
    near = [min((as_it_is, swapped), key=lambda x, value=value: abs(x - value)) for value in values]
    assert values == pytest.approx(near, abs=1e-6)
    assert 8 < near.count(swapped) < 32


def test_the_largest_stays_and_the_others_only_move() -> None:
    given = probabilities(200)
    made = permuted(given, torch.arange(200), torch.zeros(200, dtype=torch.int64), seed=1)
    largest = given.argmax(dim=1, keepdim=True)
    assert torch.equal(made.gather(1, largest), given.gather(1, largest))
    assert torch.equal(made.sort(dim=1).values, given.sort(dim=1).values)
    assert (made != given).any(dim=1).float().mean() > 0.9


def test_of_several_largest_one_stays_and_the_rest_is_whole() -> None:
    given = torch.tensor([[0.4, 0.4, 0.2], [0.25, 0.5, 0.25]]).repeat(10, 1)
    made = permuted(given, torch.arange(20), torch.zeros(20, dtype=torch.int64), seed=1)
    assert torch.equal(made.sort(dim=1).values, given.sort(dim=1).values)
    assert (made[::2, 0] == 0.4).all()


def test_every_order_is_as_frequent() -> None:
    count = 24 * 500
    given = torch.tensor([[0.5, 0.2, 0.15, 0.1, 0.05]]).expand(count, 5)
    made = permuted(given, torch.arange(count), torch.full((count,), 3), seed=2)
    rest = (made[:, 1:] * 100).round().int()
    orders = dict.fromkeys(permutations((20, 15, 10, 5)), 0)
    for row in rest.tolist():
        orders[tuple(row)] += 1
    chi_square = sum((seen - 500) ** 2 / 500 for seen in orders.values())
    assert chi_square < 49.7  # 0.999 quantile of 23 degrees of freedom


def test_a_permutation_is_named_by_seed_index_and_number_and_by_nothing_else() -> None:
    given = probabilities(100)
    index, number = torch.arange(100), torch.zeros(100, dtype=torch.int64)
    made = permuted(given, index, number, seed=1)
    order = torch.randperm(100)
    assert torch.equal(permuted(given[order], index[order], number[order], seed=1), made[order])
    torch.manual_seed(123)
    assert torch.equal(permuted(given, index, number, seed=1), made)
    for other in (
        permuted(given, index + 100, number, seed=1),
        permuted(given, index, number + 1, seed=1),
        permuted(given, index, number, seed=2),
    ):
        assert (other != made).any(dim=1).float().mean() > 0.9


def test_the_seed_is_the_run_s() -> None:
    student, teacher = pair()
    of_run = DKPP()(student, teacher, LABEL, INDEX, NUMBER)
    assert torch.equal(of_run, permuted_soft_target(student, teacher, INDEX, NUMBER, seed=5))
    os.environ["PL_GLOBAL_SEED"] = "6"
    assert not torch.equal(of_run, DKPP()(student, teacher, LABEL, INDEX, NUMBER))


def test_against_loops() -> None:
    student, teacher = pair()
    target = permuted(teacher.softmax(dim=1), INDEX, NUMBER, seed=5).tolist()
    total = 0.0
    for z, q in zip(student.tolist(), target, strict=True):
        norm = math.log(sum(math.exp(x) for x in z))
        total -= sum(share * (x - norm) for share, x in zip(q, z, strict=True))
    assert DKPP()(student, teacher, LABEL, INDEX, NUMBER).item() == pytest.approx(total / SAMPLES, rel=1e-9)


def test_the_least_value_is_the_entropy_with_gradient_0() -> None:
    _, teacher = pair()
    target = permuted(teacher.softmax(dim=1), INDEX, NUMBER, seed=5)
    student = target.log().requires_grad_()
    value = DKPP()(student, teacher, LABEL, INDEX, NUMBER)
    value.backward()
    torch.testing.assert_close(value, -(target * target.log()).sum(dim=1).mean())
    torch.testing.assert_close(student.grad, torch.zeros_like(student))


def test_steps_lower_it_and_the_labels_are_not_looked_at() -> None:
    student, teacher = pair()
    student.requires_grad_()
    optimizer = torch.optim.SGD([student], 5.0)
    values = []
    for step in range(20):
        optimizer.zero_grad()
        value = DKPP()(student, teacher, LABEL + step, INDEX, NUMBER)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.8 * values[0]


def test_no_gradient_reaches_the_permutation_but_the_student_s_is_right() -> None:
    student, teacher = pair(3)
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: permuted_soft_target(z, teacher, INDEX[:3], NUMBER[:3], 1),
        (student,),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = (values.to(dtype) for values in pair())
    value = DKPP()(student, teacher, LABEL, INDEX, NUMBER)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, DKPP()(student.float(), teacher.float(), LABEL, INDEX, NUMBER))


def test_other_classes_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"logits of one shape, got \(6, 5\) and \(6, 4\)"):
        DKPP()(torch.zeros(6, 5), torch.zeros(6, 4), LABEL, INDEX, NUMBER)
