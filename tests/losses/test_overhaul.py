import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kd_lightning.losses import OverhaulFeature
from kd_lightning.losses.adapters import Shape
from kd_lightning.losses.overhaul import negative_mean, partial_l2

NO_TARGET = torch.zeros(0, dtype=torch.int64)
STUDENT = [(6, 3, 8, 8), (6, 4, 4, 4)]
TEACHER = [(6, 5, 8, 8), (6, 7, 2, 2)]
Norms = list[tuple[Tensor, Tensor]]


def built() -> tuple[OverhaulFeature, list[Tensor], list[Tensor], Norms]:
    loss = OverhaulFeature()
    loss.build(STUDENT, TEACHER)
    students, teachers = ([torch.randn(shape) for shape in side] for side in (STUDENT, TEACHER))
    return loss, students, teachers, [(torch.randn(shape[1]) / 2, torch.rand(shape[1]) + 0.5) for shape in TEACHER]


def value_of(student: float, teacher: float, margin: float | None = None) -> float:
    s, t = torch.tensor([[[[student]]]]), torch.tensor([[[[teacher]]]])
    return partial_l2([s], [t], None if margin is None else [torch.tensor([margin])]).item() * 1000


@pytest.mark.parametrize(
    ("student", "teacher", "margin", "expected"),
    [
        (1.0, 3.0, -1.0, 4.0),  # a positive target is always wanted
        (4.0, 3.0, -1.0, 1.0),
        (-2.0, 3.0, -1.0, 25.0),
        (0.5, -0.5, -1.0, 1.0),  # the target is the teacher's -0.5, above the margin: (0.5 + 0.5)^2
        (0.5, -5.0, -1.0, 2.25),  # the target is the margin: (0.5 + 1)^2
        (-2.0, -5.0, -1.0, 0.0),  # negative enough
        (-2.0, -5.0, None, 9.0),  # no margin: above the teacher's
        (-6.0, -5.0, None, 0.0),
    ],
)
def test_an_entry_by_hand(student: float, teacher: float, margin: float | None, expected: float) -> None:
    assert value_of(student, teacher, margin) == pytest.approx(expected, rel=1e-5)


def test_by_hand() -> None:
    # Two samples. First tap: (1 - 3)^2 + 0 = 4; second: (0.5 + 1)^2 + (4 - 3)^2 = 3.25. (4 / 2 + 3.25) / 2 / 1000.
    maps = [torch.tensor(values).view(2, 1, 1, 1) for values in ([1.0, -2.0], [0.5, 4.0], [3.0, -5.0], [-5.0, 3.0])]
    value = partial_l2(maps[:2], maps[2:], [torch.tensor([-1.0])] * 2)
    assert value.item() == pytest.approx(0.002625)


def test_the_last_of_three_taps_weighs_most() -> None:
    teacher = torch.ones(1, 1, 1, 1)
    for i, weight in enumerate((1 / 4, 1 / 2, 1.0)):
        students = [teacher + 1 if j == i else teacher for j in range(3)]
        assert partial_l2(students, [teacher] * 3).item() == pytest.approx(weight / 1000)


def test_against_a_loop() -> None:
    students, teachers = ([2 * torch.randn(2, 3, 2, 2) for _ in range(2)] for _ in range(2))
    margins = [-torch.rand(3), -torch.rand(3)]
    total = 0.0
    for i in range(2):
        for n in range(2):
            for c in range(3):
                for s, t in zip(students[i][n, c].flatten(), teachers[i][n, c].flatten(), strict=True):
                    goal = max(t.item(), margins[i][c].item())
                    total += 0.0 if s <= goal <= 0 else 2.0 ** (i - 1) * (s.item() - goal) ** 2
    assert partial_l2(students, teachers, margins).item() == pytest.approx(total / 2 / 1000, rel=1e-5)


def test_the_margin_of_a_standard_normal_by_hand() -> None:
    # E[x | x < 0] = -phi(0) / Phi(0) = -0.3989423 / 0.5; of N(1, 1): 1 - 0.2419707 / 0.1586553.
    margins = negative_mean(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 2.0]))
    torch.testing.assert_close(margins.float(), torch.tensor([-0.7978846, -0.5251353, -1.5957691]))


@pytest.mark.parametrize(("mean", "std"), [(0.5, 1.0), (-1.0, 0.5), (2.0, 1.5)])
def test_the_margin_is_the_mean_of_negative_draws(mean: float, std: float) -> None:
    draws = mean + std * torch.randn(400_000)
    expected = draws[draws < 0].mean().item()
    assert negative_mean(torch.tensor(mean), torch.tensor(std)).item() == pytest.approx(expected, rel=0.02)


def test_a_channel_that_is_hardly_ever_negative_has_a_margin_of_three_deviations() -> None:
    # Phi(-3.2) = 0.0007 is below the cut of 0.001, Phi(-3) = 0.00135 is not.
    cut, kept = negative_mean(torch.tensor([6.4, 6.0]), torch.tensor([2.0, 2.0]))
    assert cut.item() == pytest.approx(-6.0)
    assert kept.item() == pytest.approx(6 - 2 * math.exp(-4.5) / math.sqrt(2 * math.pi) / 0.0013498980, rel=1e-4)


def test_the_sign_of_a_scale_does_not_matter() -> None:
    mean, std = torch.randn(5), torch.rand(5) + 0.1
    assert torch.equal(negative_mean(mean, -std), negative_mean(mean, std))


@pytest.mark.parametrize("mean", [-1.0, 0.0, 1.0])
def test_a_channel_without_deviation_has_a_finite_margin(mean: float) -> None:
    margin = negative_mean(torch.tensor([mean]), torch.tensor([0.0]))
    assert margin.item() == min(mean, 0.0)


@settings(max_examples=40)
@given(st.floats(-30, 30), st.floats(1e-3, 10))
def test_margins_are_negative_and_at_most_the_mean(mean: float, std: float) -> None:
    margin = negative_mean(*torch.tensor([mean, std], dtype=torch.float64)).item()
    assert -math.inf < margin < 0
    assert margin <= mean + 1e-9


def test_the_norms_of_the_teacher_set_the_margins() -> None:
    student, teacher = torch.full((1, 2, 1, 1), 0.5), torch.full((1, 2, 1, 1), -50.0)
    norms = [(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 2.0]))]
    # Margins -0.7978846 and -1.5957691: 1.2978846^2 + 2.0957691^2 = 6.0767526.
    value = OverhaulFeature()(student, teacher, NO_TARGET, teacher_norms=norms)
    assert value.item() == pytest.approx(6.0767526 / 1000, rel=1e-5)


def test_each_tap_has_its_norms() -> None:
    _, _, teachers, norms = built()
    students = [torch.randn(shape) for shape in TEACHER]
    margins = [negative_mean(*norm).float() for norm in norms]
    parts = [partial_l2([s], [t], [m]) for s, t, m in zip(students, teachers, margins, strict=True)]
    value = OverhaulFeature()(students, teachers, NO_TARGET, teacher_norms=norms)
    torch.testing.assert_close(value, parts[0] / 2 + parts[1])


@pytest.mark.parametrize("margins", [None, [torch.tensor([-0.3, -0.5, -1.0])]])
def test_the_minimum_is_zero_at_equality(margins: list[Tensor] | None) -> None:
    teacher = 3 * torch.randn(4, 3, 2, 2)
    student = teacher.clone().requires_grad_()
    value = partial_l2([student], [teacher], margins)
    value.backward()
    assert value.item() == 0
    assert student.grad is not None
    assert student.grad.abs().max() == 0
    assert partial_l2([teacher + 0.1], [teacher], margins) > 0


def test_gradcheck() -> None:
    students, teachers = ([2 * torch.randn(2, 3, 2, 2).double() for _ in range(2)] for _ in range(2))
    margins = [-torch.rand(3).double() for _ in range(2)]
    first, second = (s.requires_grad_() for s in students)
    assert torch.autograd.gradcheck(lambda a, b: partial_l2([a, b], teachers, margins), (first, second))


def test_the_gradient_reaches_student_and_connectors() -> None:
    loss, students, teachers, norms = built()
    loss([s.requires_grad_() for s in students], teachers, NO_TARGET, teacher_norms=norms).backward()
    for student in students:
        assert student.grad is not None
        assert (student.grad.flatten(1).abs().sum(1) > 0).all()
    for name, parameter in loss.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert all(teacher.grad is None for teacher in teachers)


def test_twenty_steps_lower_it() -> None:
    loss, students, teachers, norms = built()
    optimizer = torch.optim.Adam([*(s.requires_grad_() for s in students), *loss.parameters()], lr=0.05)
    values = []
    for _ in range(21):
        value = loss(students, teachers, NO_TARGET, teacher_norms=norms)
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values[-1] < 0.7 * values[0]


def test_the_built_loss_is_the_formula_of_the_connected_maps() -> None:
    loss, students, teachers, _ = built()
    connected = [connect(s) for connect, s in zip(loss.connectors, students, strict=True)]
    assert [tuple(c.shape) for c in connected] == TEACHER
    assert min(c.min() for c in connected) < 0  # no activation at the end
    torch.testing.assert_close(loss(students, teachers, NO_TARGET), partial_l2(connected, teachers))


def test_the_order_of_the_batch_does_not_matter() -> None:
    loss, students, teachers, norms = built()
    order = torch.randperm(6)
    shuffled = loss([s[order] for s in students], [t[order] for t in teachers], NO_TARGET, teacher_norms=norms)
    torch.testing.assert_close(shuffled, loss(students, teachers, NO_TARGET, teacher_norms=norms))


def test_the_batch_is_averaged() -> None:
    student, teacher = torch.randn(2, 4, 3, 2, 2)
    twice = partial_l2([torch.cat([student, student])], [torch.cat([teacher, teacher])])
    torch.testing.assert_close(twice, partial_l2([student], [teacher]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = (300 * torch.randn(2, 4, 3, 4, 4)).to(dtype)  # a square would not fit in float16
    norms = [(torch.zeros(3), torch.ones(3))]
    value = OverhaulFeature()(student.requires_grad_(), teacher, NO_TARGET, teacher_norms=norms)
    value.backward()
    assert value.dtype == torch.float32
    expected = OverhaulFeature()(student.float(), teacher.float(), NO_TARGET, teacher_norms=norms)
    torch.testing.assert_close(value, expected)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_autocast_is_near_float32() -> None:
    loss, students, teachers, norms = built()
    expected = loss(students, teachers, NO_TARGET, teacher_norms=norms)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss([s.requires_grad_() for s in students], teachers, NO_TARGET, teacher_norms=norms)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=0.02, atol=0)
    assert all(s.grad is not None and s.grad.isfinite().all() for s in students)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 2, 1, 1), (2, 1, 3, 3)])
def test_small_and_constant_inputs_stay_finite(shape: Shape) -> None:
    student, norms = torch.zeros(shape, requires_grad=True), [(torch.zeros(shape[1]), torch.ones(shape[1]))]
    value = OverhaulFeature()(student, torch.ones(shape), NO_TARGET, teacher_norms=norms)
    value.backward()
    assert value.item() == pytest.approx(student[0].numel() / 1000)  # (0 - 1)^2 each
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.full(shape, -2 / 1000 / len(student)))


@pytest.mark.parametrize("channels", [1, 2])
def test_constant_maps_pass_the_connector(channels: int) -> None:
    loss, shape = OverhaulFeature(), (1, channels, 4, 4)
    loss.build([shape], [shape])
    student = torch.ones(shape, requires_grad=True)
    value = loss(student, torch.ones(shape), NO_TARGET)
    value.backward()
    assert value.item() == pytest.approx(16 * channels / 1000, rel=0.02)  # normalised to 0, to be 1
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_a_single_position_of_a_single_sample_cannot_be_normalised() -> None:
    loss = OverhaulFeature()
    loss.build([(1, 3, 1, 1)], [(1, 3, 1, 1)])
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        loss(torch.zeros(1, 3, 1, 1), torch.zeros(1, 3, 1, 1), NO_TARGET)


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.floats(1e-2, 1e2))
def test_it_grows_with_the_square_of_the_scale(samples: int, channels: int, side: int, scale: float) -> None:
    student, teacher = torch.randn(2, samples, channels, side, side).double()
    margin = -torch.rand(channels).double()
    value = partial_l2([scale * student], [scale * teacher], [scale * margin])
    torch.testing.assert_close(value, scale**2 * partial_l2([student], [teacher], [margin]))


@pytest.mark.parametrize("target", [torch.tensor([0, 1]), torch.full((2, 3), 1 / 3)])
def test_the_labels_are_not_looked_at(target: Tensor) -> None:
    student, teacher = torch.randn(2, 2, 5, 1, 1)
    assert torch.equal(OverhaulFeature()(student, teacher, target), partial_l2([student], [teacher]))


def test_what_it_needs() -> None:
    assert OverhaulFeature.student_tap == OverhaulFeature.teacher_tap == "stages:preact"
    assert OverhaulFeature.needs == {"teacher_norms"}


@pytest.mark.parametrize("shape", [(2, 3), (2, 7, 3)])
def test_connectors_need_maps(shape: Shape) -> None:
    with pytest.raises(ValueError, match=r"connectors are for maps \[N, C, H, W\], got"):
        OverhaulFeature().build([shape], [shape])


def test_features_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"features of one shape, got \(4, 3, 2, 2\) and \(4, 5, 2, 2\)"):
        OverhaulFeature()(torch.zeros(4, 3, 2, 2), torch.zeros(4, 5, 2, 2), NO_TARGET)


def test_as_many_taps_are_needed() -> None:
    loss, maps = OverhaulFeature(), torch.zeros(4, 3, 2, 2)
    loss.build([maps.shape, maps.shape], [maps.shape])
    with pytest.raises(ValueError, match="as many taps as one another, got 2 and 1"):
        loss([maps, maps], maps, NO_TARGET)
