from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kd_lightning.losses import AttentionTransfer
from kd_lightning.losses.attention_transfer import attention, attention_transfer

NO_TARGET = torch.zeros(0, dtype=torch.int64)


def maps(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def lowered(loss: Callable[[Tensor], Tensor], student: Tensor, steps: int = 20) -> float:
    """The value after some steps, as a share of the value before."""
    student = student.clone().requires_grad_()
    optimizer = torch.optim.Adam([student], lr=0.05)
    before = loss(student).item()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(student).backward()
        optimizer.step()
    return loss(student).item() / before


def test_by_hand() -> None:
    # Mean over channels of squares: ((9 + 0 + 0) / 3, (4 + 4 + 4) / 3) = (3, 4), Q_s = (0.6, 0.8).
    student = torch.tensor([3.0, 2, 0, -2, 0, 2]).view(1, 3, 1, 2)
    # Q_t = (25, 0) / 25 = (1, 0): ((0.6 - 1)^2 + (0.8 - 0)^2) / 2 = 0.4.
    teacher = torch.tensor([-5.0, 0.0]).view(1, 1, 1, 2)
    assert attention_transfer(student, teacher).item() == pytest.approx(0.4)


def test_the_exponent_by_hand() -> None:
    # p = 1: means (3, 4), Q_s = (0.6, 0.8), and a negative map stays negative: Q_t = (-1, 0).
    student = torch.tensor([2.0, 5, 4, 3]).view(1, 2, 1, 2)
    teacher = torch.tensor([-5.0, 0.0]).view(1, 1, 1, 2)
    # (1.6^2 + 0.8^2) / 2 = 1.6
    assert attention_transfer(student, teacher, p=1).item() == pytest.approx(1.6)


def test_the_batch_is_averaged() -> None:
    # 0.4 of the first sample (p = 1), 0 of the second, which agrees.
    student = torch.tensor([3.0, 4, 1, 1]).view(2, 1, 1, 2)
    teacher = torch.tensor([1.0, 0, 2, 2]).view(2, 1, 1, 2)
    assert attention_transfer(student, teacher, p=1).item() == pytest.approx(0.2)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_larger_map_is_pooled_before_the_power(swapped: bool) -> None:
    # (1, 5 | 4, 4) pools to (3, 4), whose squares are (9, 16), of norm sqrt(337); the other side is (0, 1).
    pair = [torch.tensor([1.0, 5, 4, 4]).view(1, 1, 1, 4), torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)]
    # (2 - 2 * 16 / sqrt(337)) / 2 = 0.1284243
    student, teacher = pair[::-1] if swapped else pair
    assert attention_transfer(student, teacher).item() == pytest.approx(0.1284243, abs=1e-6)


def test_taps_are_summed() -> None:
    students, teachers = [maps(3, 4, 5, 5), maps(3, 6, 2, 2)], [maps(3, 8, 5, 5), maps(3, 2, 4, 4)]
    expected = sum(attention_transfer(s, t) for s, t in zip(students, teachers, strict=True))
    torch.testing.assert_close(AttentionTransfer()(students, teachers, NO_TARGET), expected)


def test_against_torchdistill() -> None:
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    pairs = {n: {side: {"io": "output", "path": n} for side in ("student", "teacher")} for n in ("a", "b")}
    students, teachers = [maps(4, 3, 6, 5), maps(4, 7, 2, 2)], [maps(4, 5, 6, 5), maps(4, 2, 2, 2)]
    # Its mode "code" is ours, for p = 2 and maps of one size.
    expected = losses.ATLoss(pairs, mode="code")(
        *({n: {"output": x} for n, x in zip("ab", taps, strict=True)} for taps in (students, teachers))
    )
    torch.testing.assert_close(AttentionTransfer()(students, teachers, NO_TARGET), expected)


def test_against_torchdistill_as_in_the_paper() -> None:
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    student, teacher = maps(1, 3, 4, 4), maps(1, 5, 4, 4)
    pairs = {"a": {side: {"io": "output", "path": "a"} for side in ("student", "teacher")}}
    # Its mode "paper" is the norm of the difference, so for one sample sqrt(16 positions * ours).
    theirs = losses.ATLoss(pairs, mode="paper")({"a": {"output": student}}, {"a": {"output": teacher}})
    torch.testing.assert_close((16 * AttentionTransfer()(student, teacher, NO_TARGET)).sqrt(), theirs)


@pytest.mark.parametrize("p", [1, 3, 4])
def test_against_loops(p: int) -> None:
    student, teacher = maps(2, 3, 2, 2), maps(2, 4, 2, 2)
    total = 0.0
    for n in range(2):
        rows = []
        for x in (student[n], teacher[n]):
            means = [sum(float(x[c, i, j]) ** p for c in range(len(x))) / len(x) for i in range(2) for j in range(2)]
            norm = sum(m * m for m in means) ** 0.5
            rows.append([m / norm for m in means])
        total += sum((a - b) ** 2 for a, b in zip(*rows, strict=True))
    assert attention_transfer(student, teacher, p).item() == pytest.approx(total / 8)


def test_attention_is_of_unit_length() -> None:
    torch.testing.assert_close(attention(maps(3, 4, 2, 5)).norm(dim=1), torch.ones(3).double())


def test_the_minimum_is_zero_at_equality() -> None:
    teacher = maps(3, 4, 4, 4)
    same = teacher.clone().requires_grad_()
    value = attention_transfer(same, teacher)
    value.backward()
    assert value.item() == 0
    torch.testing.assert_close(same.grad, torch.zeros_like(teacher))
    assert attention_transfer(maps(3, 4, 4, 4), teacher) > 1e-3


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("size", [2, 4])
def test_gradcheck(p: int, size: int) -> None:
    inputs = maps(2, 3, size, size).requires_grad_(), maps(2, 2, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, t: attention_transfer(s, t, p), inputs)


def test_the_gradient_reaches_each_sample_of_the_student() -> None:
    loss, student, teacher = AttentionTransfer(), maps(3, 4, 4, 4).requires_grad_(), maps(3, 8, 4, 4)
    loss.build([(3, 4, 4, 4)], [(3, 8, 4, 4)])
    loss(student, teacher, NO_TARGET).backward()
    assert student.grad is not None
    assert (student.grad.flatten(1).abs().sum(1) > 0).all()
    assert teacher.grad is None
    assert not list(loss.parameters())


@pytest.mark.parametrize("p", [1, 2])
def test_twenty_steps_lower_it(p: int) -> None:
    teacher = maps(4, 8, 4, 4).relu()
    assert lowered(lambda s: AttentionTransfer(p)(s, teacher, NO_TARGET), maps(4, 3, 4, 4).relu() + 0.1) < 0.5


def test_the_order_of_the_batch_does_not_matter() -> None:
    student, teacher, order = maps(5, 3, 4, 4), maps(5, 6, 2, 2), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(attention_transfer(student[order], teacher[order]), attention_transfer(student, teacher))
    assert not torch.isclose(attention_transfer(student[order], teacher), attention_transfer(student, teacher))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    # Squares of 300 overflow float16.
    student, teacher = (300 * torch.randn(2, 4, 3, 4, 4)).to(dtype)
    value = attention_transfer(student.requires_grad_(), teacher)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, attention_transfer(student.float(), teacher.float()))
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().sum() > 0


def test_autocast_does_not_lower_the_precision() -> None:
    network, images, teacher = nn.Conv2d(3, 6, 3), torch.randn(4, 3, 8, 8), torch.randn(4, 5, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        student = network(images)
        value = AttentionTransfer()(student, teacher, NO_TARGET)
    assert student.dtype == torch.bfloat16
    torch.testing.assert_close(value, attention_transfer(student.float(), teacher))
    value.backward()
    assert network.weight.grad is not None
    assert network.weight.grad.isfinite().all()
    assert network.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("fill", [0.0, 2.0, -1.0])
@pytest.mark.parametrize("p", [1, 2])
def test_constant_maps_stay_finite(fill: float, p: int) -> None:
    student = torch.full((2, 3, 4, 4), fill, requires_grad=True)
    for teacher in (torch.randn(2, 3, 4, 4), torch.full((2, 3, 4, 4), fill)):
        value = attention_transfer(student, teacher, p)
        (gradient,) = torch.autograd.grad(value, student)
        assert value.isfinite()
        assert gradient.isfinite().all()


def test_a_map_of_zeros_has_no_attention() -> None:
    # Q_s = 0, Q_t of unit length: 1 / 4 positions.
    assert attention_transfer(torch.zeros(1, 3, 2, 2), torch.randn(1, 3, 2, 2)).item() == pytest.approx(0.25)


@pytest.mark.parametrize("channels", [1, 2])
def test_one_sample_of_few_channels(channels: int) -> None:
    student = torch.randn(1, channels, 3, 3, requires_grad=True)
    value = attention_transfer(student, torch.randn(1, 4, 3, 3))
    value.backward()
    assert value > 0
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert student.grad.isfinite().all()


def test_labels_are_not_looked_at() -> None:
    student, teacher = maps(2, 3, 4, 4), maps(2, 3, 4, 4)
    values = [
        AttentionTransfer()(student, teacher, target)
        for target in (torch.tensor([0, 1]), torch.rand(2, 5), torch.tensor([4, 4]))
    ]
    assert values[0] == values[1] == values[2] > 0


def test_the_taps_are_the_stages() -> None:
    assert (AttentionTransfer.student_tap, AttentionTransfer.teacher_tap) == ("stages", "stages")
    assert AttentionTransfer().p == 2


@pytest.mark.parametrize("p", [0, -1, 0.5, 1.5, float("nan"), float("inf")])
def test_a_bad_exponent_is_named(p: float) -> None:
    # Others give no number for a negative value, or no gradient at 0.
    with pytest.raises(ValueError, match=f"p must be a whole number >= 1, got {p}"):
        AttentionTransfer(p)


def test_what_is_no_map_is_refused() -> None:
    with pytest.raises(ValueError, match=r"features must be maps \[N, C, H, W\], got \(2, 5\): a tap's :map makes one"):
        attention_transfer(torch.zeros(2, 3, 4, 4), torch.zeros(2, 5))


def test_as_many_taps_are_needed_of_both() -> None:
    with pytest.raises(ValueError, match="as many taps as one another, got 2 and 1"):
        AttentionTransfer()([maps(1, 1, 2, 2)] * 2, [maps(1, 1, 2, 2)], NO_TARGET)


@settings(max_examples=15, deadline=None)
@given(
    samples=st.integers(1, 4),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    sizes=st.tuples(*[st.integers(1, 5)] * 4),
    scale=st.floats(0.01, 100),
)
def test_any_shape_gives_a_value_that_no_scale_changes(
    samples: int, channels: tuple[int, int], sizes: tuple[int, int, int, int], scale: float
) -> None:
    student, teacher = maps(samples, channels[0], *sizes[:2]), maps(samples, channels[1], *sizes[2:])
    value = attention_transfer(student, teacher)
    positions = min(sizes[0], sizes[2]) * min(sizes[1], sizes[3])
    # Two unit vectors without negative entries are no more than sqrt(2) apart.
    assert -1e-12 <= value.item() <= 2 / positions + 1e-12
    torch.testing.assert_close(attention_transfer(scale * student, teacher / scale), value)
