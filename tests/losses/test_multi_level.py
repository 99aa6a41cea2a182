import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses import MultiLevelKD, SoftTarget
from kd_lightning.losses.multi_level import PARTS, batch_relation, class_relation

# What holds of every loss of logits (precision, constants, one class, the order of the batch, ...): test_logits.py.
NO_TARGET = torch.zeros(0, dtype=torch.int64)


def pair(samples: int = 6, classes: int = 5) -> tuple[Tensor, Tensor]:
    return 3 * torch.randn(samples, classes).double(), 3 * torch.randn(samples, classes).double()


# P_t = ((1/2, 1/2), (3/4, 1/4)), P_s = 1/2 everywhere.
# instance: KL is 0 and 0.75 ln 1.5 - 0.25 ln 2 = 0.1308120, mean 0.0654060.
# batch: P_t P_t^T = ((1/2, 1/2), (1/2, 5/8)), P_s P_s^T = 1/2 everywhere: (1/8)^2 / 2 = 0.0078125.
# class: P_t^T P_t = ((13/16, 7/16), (7/16, 5/16)), P_s^T P_s = 1/2: (25 + 1 + 1 + 9) / 256 / 2 = 0.0703125.
TEACHER, STUDENT = torch.tensor([[1.0, 1], [3, 1]]).log(), torch.zeros(2, 2)
BY_HAND = {"instance": 0.0654060, "batch": 0.0078125, "class": 0.0703125}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_by_hand(part: str, temperature: float) -> None:
    # T^2 is the instances' alone.
    expected = BY_HAND[part] * (temperature**2 if part == "instance" else 1)
    value = MultiLevelKD([temperature], [part])(temperature * STUDENT, temperature * TEACHER, NO_TARGET)
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_the_parts_are_summed() -> None:
    value = MultiLevelKD([1.0])(STUDENT, TEACHER, NO_TARGET)
    assert value.item() == pytest.approx(0.0654060 + 0.0078125 + 0.0703125, abs=1e-6)


def test_the_temperatures_are_summed() -> None:
    student, teacher = pair()
    for part in PARTS:
        single = [MultiLevelKD([t], [part])(student, teacher, NO_TARGET) for t in (2.0, 3.0, 4.0, 5.0, 6.0)]
        torch.testing.assert_close(MultiLevelKD(parts=[part])(student, teacher, NO_TARGET), torch.stack(single).sum())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_parts_in_any_order(count: int) -> None:
    student, teacher = pair()
    single = {part: MultiLevelKD(parts=[part])(student, teacher, NO_TARGET) for part in PARTS}
    for parts in itertools.permutations(PARTS, count):
        expected = torch.stack([single[part] for part in parts]).sum()
        torch.testing.assert_close(MultiLevelKD(parts=parts)(student, teacher, NO_TARGET), expected)


def test_instances_are_soft_targets() -> None:
    student, teacher = pair()
    value = MultiLevelKD([4.0], ["instance"])(student, teacher, NO_TARGET)
    torch.testing.assert_close(value, SoftTarget(4.0)(student, teacher, NO_TARGET))


def test_relations_against_loops() -> None:
    student, teacher = pair(3, 4)
    p_s, p_t = F.softmax(student / 2, dim=1).tolist(), F.softmax(teacher / 2, dim=1).tolist()
    batch = classes = 0.0
    for i, j in itertools.product(range(3), repeat=2):
        similar_t, similar_s = (sum(p[i][c] * p[j][c] for c in range(4)) for p in (p_t, p_s))
        batch += (similar_t - similar_s) ** 2 / 3  # N, not N^2
    for c, d in itertools.product(range(4), repeat=2):
        similar_t, similar_s = (sum(p[n][c] * p[n][d] for n in range(3)) for p in (p_t, p_s))
        classes += (similar_t - similar_s) ** 2 / 4  # C, not C^2
    assert batch_relation(student, teacher, 2.0).item() == pytest.approx(batch, rel=1e-9)
    assert class_relation(student, teacher, 2.0).item() == pytest.approx(classes, rel=1e-9)


@pytest.mark.parametrize("part", PARTS)
def test_the_minimum_is_zero_at_equality(part: str) -> None:
    student, teacher = pair()
    loss, same = MultiLevelKD(parts=[part]), teacher.clone().requires_grad_()
    value = loss(same, teacher, NO_TARGET)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(same.grad, torch.zeros_like(teacher))
    assert loss(student, teacher, NO_TARGET) > 1e-3


def test_samples_resemble_one_another_whatever_the_order_of_the_student_s_classes() -> None:
    student, teacher = pair()
    order = torch.randperm(5)
    torch.testing.assert_close(batch_relation(student[:, order], teacher, 2.0), batch_relation(student, teacher, 2.0))
    assert not torch.isclose(class_relation(student[:, order], teacher, 2.0), class_relation(student, teacher, 2.0))


def test_classes_resemble_one_another_whatever_the_order_of_the_student_s_samples() -> None:
    student, teacher = pair()
    order = torch.tensor([1, 2, 3, 4, 5, 0])
    torch.testing.assert_close(class_relation(student[order], teacher, 2.0), class_relation(student, teacher, 2.0))
    assert not torch.isclose(batch_relation(student[order], teacher, 2.0), batch_relation(student, teacher, 2.0))


@pytest.mark.parametrize("part", PARTS)
def test_gradcheck(part: str) -> None:
    student, teacher = pair(3, 4)
    loss = MultiLevelKD((1.0, 2.0), [part])
    assert torch.autograd.gradcheck(
        lambda s, t: loss(s, t, NO_TARGET), (student.requires_grad_(), teacher.requires_grad_())
    )


@pytest.mark.parametrize("part", PARTS)
def test_thirty_steps_lower_each_part(part: str) -> None:
    student, teacher = pair()
    loss, student = MultiLevelKD(parts=[part]), student.requires_grad_()
    optimizer = torch.optim.Adam([student], lr=0.1)
    first = loss(student, teacher, NO_TARGET).item()
    for _ in range(30):
        optimizer.zero_grad()
        loss(student, teacher, NO_TARGET).backward()
        optimizer.step()
    assert loss(student, teacher, NO_TARGET).item() < 0.7 * first


@pytest.mark.parametrize("part", ["batch", "class"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_are_in_float32_under_autocast(part: str, dtype: torch.dtype) -> None:
    student, teacher = (logits.to(dtype) for logits in pair(8, 20))
    loss = MultiLevelKD(parts=[part])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher, NO_TARGET)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), loss(student.double(), teacher.double(), NO_TARGET), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("temperatures", "message"),
    [
        ([], "temperatures must hold at least one temperature, got none"),
        ([2.0, 0.0], "temperature must be > 0, got 0.0"),
    ],
)
def test_bad_temperatures_are_named(temperatures: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        MultiLevelKD(temperatures)


@pytest.mark.parametrize("parts", [[], ["sample"], ["batch", "batch"]])
def test_bad_parts_are_named(parts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^parts must be some of \['instance', 'batch', 'class'\], each once, got \["):
        MultiLevelKD(parts=parts)
