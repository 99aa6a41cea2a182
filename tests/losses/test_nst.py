import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kd_lightning.losses import NST
from kd_lightning.losses.nst import selectivity

NO_TARGET = torch.zeros(0, dtype=torch.int64)


def maps(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def test_by_hand() -> None:
    # Channel rows of unit length: (0.6, 0.8) of the student; (1, 0) and (0, -1) of the teacher.
    student = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)
    teacher = torch.tensor([2.0, 0, 0, -7]).view(1, 2, 1, 2)
    # k_ss = 1, k_tt = (1 + 0 + 0 + 1) / 4 = 0.5, k_st = (0.36 + 0.64) / 2 = 0.5: 1 + 0.5 - 1 = 0.5.
    assert selectivity(student, teacher).item() == pytest.approx(0.5)


def test_the_batch_is_averaged() -> None:
    # The second sample's rows are the same but for a scale, so k = 1 + 1 - 2 = 0.
    student = torch.tensor([3.0, 4, 1, 0]).view(2, 1, 1, 2)
    teacher = torch.tensor([2.0, 0, 0, -7, 5, 0, 3, 0]).view(2, 2, 1, 2)
    assert selectivity(student, teacher).item() == pytest.approx(0.25)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_larger_map_is_pooled_first(swapped: bool) -> None:
    # (1, 5 | 4, 4) pools to (3, 4), so to (0.6, 0.8); with (0, 1): 1 + 1 - 2 * 0.64 = 0.72.
    pair = [torch.tensor([1.0, 5, 4, 4]).view(1, 1, 1, 4), torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)]
    student, teacher = pair[::-1] if swapped else pair
    assert selectivity(student, teacher).item() == pytest.approx(0.72)


def test_against_loops() -> None:
    student, teacher = maps(2, 3, 2, 2), maps(2, 4, 2, 2)

    def kernel(a: Tensor, b: Tensor) -> float:
        total = 0.0
        for x in a.flatten(1):
            for y in b.flatten(1):
                total += float((x @ y / (x.norm() * y.norm())) ** 2)
        return total / (len(a) * len(b))

    expected = [kernel(t, t) + kernel(s, s) - 2 * kernel(s, t) for s, t in zip(student, teacher, strict=True)]
    assert selectivity(student, teacher).item() == pytest.approx(sum(expected) / 2)


def test_taps_are_summed() -> None:
    students, teachers = [maps(3, 4, 5, 5), maps(3, 6, 2, 2)], [maps(3, 8, 5, 5), maps(3, 2, 4, 4)]
    expected = sum(selectivity(s, t) for s, t in zip(students, teachers, strict=True))
    torch.testing.assert_close(NST()(students, teachers, NO_TARGET), expected)


def test_the_minimum_is_zero_at_equality() -> None:
    teacher = maps(3, 4, 4, 4)
    same = teacher.clone().requires_grad_()
    value = selectivity(same, teacher)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(same.grad, torch.zeros_like(teacher))
    assert selectivity(maps(3, 4, 4, 4), teacher) > 1e-3


def test_the_order_and_the_sign_of_the_channels_do_not_matter() -> None:
    # It compares distributions of channels, and the kernel is even.
    teacher = maps(3, 4, 4, 4)
    assert selectivity(-teacher[:, [2, 0, 3, 1]], teacher).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("size", [2, 4])
def test_gradcheck(size: int) -> None:
    inputs = maps(2, 3, size, size).requires_grad_(), maps(2, 2, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(selectivity, inputs)


def test_the_gradient_reaches_each_sample_of_the_student() -> None:
    loss, student, teacher = NST(), maps(3, 4, 4, 4).requires_grad_(), maps(3, 8, 4, 4)
    loss.build([(3, 4, 4, 4)], [(3, 8, 4, 4)])
    loss(student, teacher, NO_TARGET).backward()
    assert student.grad is not None
    assert (student.grad.flatten(1).abs().sum(1) > 0).all()
    assert teacher.grad is None
    assert not list(loss.parameters())


def test_twenty_steps_lower_it() -> None:
    student, teacher, values = maps(4, 8, 3, 3).requires_grad_(), maps(4, 8, 3, 3), []
    optimizer = torch.optim.Adam([student], lr=0.05)
    for _ in range(21):
        value = NST()(student, teacher, NO_TARGET)
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values[-1] < 0.5 * values[0]


def test_the_order_of_the_batch_does_not_matter() -> None:
    student, teacher, order = maps(5, 3, 4, 4), maps(5, 6, 2, 2), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(selectivity(student[order], teacher[order]), selectivity(student, teacher))
    assert not torch.isclose(selectivity(student[order], teacher), selectivity(student, teacher))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    # The norm of rows of 300 is computed of squares that overflow float16.
    student, teacher = (300 * torch.randn(2, 4, 3, 4, 4)).to(dtype)
    value = selectivity(student.requires_grad_(), teacher)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, selectivity(student.float(), teacher.float()))
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().sum() > 0


def test_autocast_does_not_lower_the_precision() -> None:
    network, images, teacher = nn.Conv2d(3, 6, 3), torch.randn(4, 3, 8, 8), torch.randn(4, 5, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        student = network(images)
        value = NST()(student, teacher, NO_TARGET)
    assert student.dtype == torch.bfloat16
    torch.testing.assert_close(value, selectivity(student.float(), teacher))
    value.backward()
    assert network.weight.grad is not None
    assert network.weight.grad.isfinite().all()
    assert network.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("fill", [0.0, 2.0])
def test_constant_maps_stay_finite(fill: float) -> None:
    student = torch.full((2, 3, 4, 4), fill, requires_grad=True)
    for teacher in (torch.randn(2, 3, 4, 4), torch.full((2, 3, 4, 4), fill)):
        value = selectivity(student, teacher)
        (gradient,) = torch.autograd.grad(value, student)
        assert value.isfinite()
        assert gradient.isfinite().all()


def test_a_dead_channel_resembles_nothing() -> None:
    # Rows (1, 0) and 0 of the student, (1, 0) of the teacher: k_ss = 1/4, k_tt = 1, k_st = 1/2.
    student, teacher = torch.tensor([1.0, 0, 0, 0]).view(1, 2, 1, 2), torch.tensor([1.0, 0]).view(1, 1, 1, 2)
    student.requires_grad_()
    value = selectivity(student, teacher)
    value.backward()
    assert value.item() == pytest.approx(0.25)
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("channels", [1, 2])
def test_one_sample_of_few_channels(channels: int) -> None:
    student = torch.randn(1, channels, 3, 3, requires_grad=True)
    value = selectivity(student, torch.randn(1, 4, 3, 3))
    value.backward()
    assert value > 0
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert student.grad.isfinite().all()


def test_labels_are_not_looked_at() -> None:
    student, teacher = maps(2, 3, 4, 4), maps(2, 3, 4, 4)
    values = [
        NST()(student, teacher, target) for target in (torch.tensor([0, 1]), torch.rand(2, 5), torch.tensor([4, 4]))
    ]
    assert values[0] == values[1] == values[2] > 0


def test_the_taps_are_the_stages() -> None:
    assert (NST.student_tap, NST.teacher_tap) == ("stages", "stages")


def test_what_is_no_map_is_refused() -> None:
    with pytest.raises(ValueError, match=r"features must be maps \[N, C, H, W\], got \(2, 5\): a tap's :map makes one"):
        selectivity(torch.zeros(2, 3, 4, 4), torch.zeros(2, 5))


def test_as_many_taps_are_needed_of_both() -> None:
    with pytest.raises(ValueError, match="as many taps as one another, got 1 and 2"):
        NST()(maps(1, 1, 2, 2), [maps(1, 1, 2, 2)] * 2, NO_TARGET)


@settings(max_examples=15, deadline=None)
@given(
    samples=st.integers(1, 4),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    sizes=st.tuples(*[st.integers(1, 5)] * 4),
    scale=st.floats(0.01, 100),
)
def test_any_shape_gives_a_value_that_no_scale_of_a_channel_changes(
    samples: int, channels: tuple[int, int], sizes: tuple[int, int, int, int], scale: float
) -> None:
    student, teacher = maps(samples, channels[0], *sizes[:2]), maps(samples, channels[1], *sizes[2:])
    value = selectivity(student, teacher)
    assert -1e-12 <= value.item() <= 2
    scaled = student.clone()
    scaled[:, 0] *= scale
    torch.testing.assert_close(selectivity(scaled, teacher / scale), value, atol=1e-10, rtol=1e-7)
