import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kd_lightning.losses import ActivationBoundary
from kd_lightning.losses.activation_boundary import boundary
from kd_lightning.losses.adapters import Shape

NO_TARGET = torch.zeros(0, dtype=torch.int64)
STUDENT = [(6, 3, 8, 8), (6, 4, 4, 4)]
TEACHER = [(6, 5, 8, 8), (6, 7, 2, 2)]


def built() -> tuple[ActivationBoundary, list[Tensor], list[Tensor]]:
    loss = ActivationBoundary()
    loss.build(STUDENT, TEACHER)
    return loss, [torch.randn(shape) for shape in STUDENT], [torch.randn(shape) for shape in TEACHER]


def value_of(student: float, teacher: float, margin: float = 1.0) -> float:
    value = boundary([torch.tensor([[student]])], [torch.tensor([[teacher]])], margin)
    return value.item() * 1000 / 3


@pytest.mark.parametrize(
    ("student", "teacher", "margin", "expected"),
    [
        (0.5, -2.0, 1.0, 2.25),  # should be below -1: (0.5 + 1)^2
        (-0.5, -2.0, 1.0, 0.25),  # on the right side, but not by the margin
        (-1.5, -0.1, 1.0, 0.0),
        (0.5, 0.1, 1.0, 0.25),  # should be above 1: (0.5 - 1)^2
        (-2.0, 5.0, 1.0, 9.0),
        (1.5, 0.1, 1.0, 0.0),
        (0.0, 0.0, 1.0, 1.0),  # a teacher of 0 does not fire
        (0.5, 0.1, 2.0, 2.25),  # (0.5 - 2)^2
    ],
)
def test_a_neuron_by_hand(student: float, teacher: float, margin: float, expected: float) -> None:
    assert value_of(student, teacher, margin) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_by_hand() -> None:
    # Two samples. First tap: 2.25 + 0 = 2.25; second: 0.25 + 9 = 9.25. (2.25 / 2 + 9.25) / 2 x 3 / 1000 = 0.0155625.
    students = [torch.tensor([[0.5], [1.5]]), torch.tensor([[0.5], [-2.0]])]
    teachers = [torch.tensor([[-2.0], [0.1]]), torch.tensor([[0.1], [5.0]])]
    assert boundary(students, teachers).item() == pytest.approx(0.0155625)
    assert ActivationBoundary()(students, teachers, NO_TARGET).item() == pytest.approx(0.0155625)


def test_the_last_of_three_taps_weighs_most() -> None:
    zero, one = torch.tensor([[-2.0]]), torch.tensor([[0.0]])  # of a silent teacher: 0 and 1
    for i, weight in enumerate((1 / 4, 1 / 2, 1.0)):
        students = [one if j == i else zero for j in range(3)]
        assert boundary(students, [zero] * 3).item() == pytest.approx(weight * 3 / 1000)


@pytest.mark.parametrize("margin", [0.5, 1.0, 2.0])
def test_against_a_loop(margin: float) -> None:
    students, teachers = ([3 * torch.randn(2, 3, 2, 2) for _ in range(2)] for _ in range(2))
    total = 0.0
    for i, (student, teacher) in enumerate(zip(students, teachers, strict=True)):
        for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
            wanted = s >= margin if t > 0 else s <= -margin
            gap = s - margin if t > 0 else s + margin
            total += 0.0 if wanted else 2.0 ** (i - 1) * gap**2
    assert boundary(students, teachers, margin).item() == pytest.approx(total / 2 * 3 / 1000, rel=1e-5)


@pytest.mark.parametrize("taps", [1, 3, 4])
def test_against_torchdistill(taps: int) -> None:
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    students, teachers = 2 * torch.randn(taps, 4, 3, 2, 2), torch.randn(taps, 4, 3, 2, 2)
    # Its weights of the taps are arguments, and the authors' factor 3 / 1000 is left out.
    pairs = {
        str(i): {
            "student": {"path": str(i), "io": "output"},
            "teacher": {"path": str(i), "io": "output"},
            "weight": 2.0 ** (i - taps + 1),
        }
        for i in range(taps)
    }
    theirs = losses.AltActTransferLoss(pairs, margin=1.5, reduction="mean")
    expected = theirs(*({str(i): {"output": x} for i, x in enumerate(side)} for side in (students, teachers)))
    value = ActivationBoundary(1.5)(list(students), list(teachers), NO_TARGET)
    torch.testing.assert_close(value, expected * 3 / 1000)


def test_the_minimum_is_zero_beyond_the_margin() -> None:
    teacher = torch.randn(4, 3, 2, 2)
    student = torch.where(teacher > 0, 1.0, -1.0).mul(1.5).requires_grad_()
    value = ActivationBoundary()(student, teacher, NO_TARGET)
    value.backward()
    assert value.item() == 0
    assert student.grad is not None
    assert student.grad.abs().max() == 0


def test_equality_is_no_minimum() -> None:
    # Strength does not count: a teacher within the margin is to be exceeded. (0.25 - 1)^2 + (-0.5 + 1)^2 = 0.8125.
    teacher = torch.tensor([[0.25, -0.5, 3.0, -3.0]])
    student = teacher.clone().requires_grad_()
    value = boundary([student], [teacher])
    value.backward()
    assert value.item() == pytest.approx(0.8125 * 3 / 1000)
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.tensor([[-1.5, 1.0, 0.0, 0.0]]) * 3 / 1000)


def test_only_the_sign_of_the_teacher_counts() -> None:
    student, teacher = torch.randn(2, 4, 3, 2, 2)
    torch.testing.assert_close(boundary([student], [100 * teacher]), boundary([student], [teacher]))


def test_gradcheck() -> None:
    students = [2 * torch.randn(2, 3, 2, 2).double() for _ in range(2)]
    teachers = [torch.randn(2, 3, 2, 2).double() for _ in range(2)]
    first, second = (s.requires_grad_() for s in students)
    assert torch.autograd.gradcheck(lambda a, b: boundary([a, b], teachers), (first, second))


def test_the_gradient_reaches_student_and_connectors() -> None:
    loss, students, teachers = built()
    loss([s.requires_grad_() for s in students], teachers, NO_TARGET).backward()
    for student in students:
        assert student.grad is not None
        assert (student.grad.flatten(1).abs().sum(1) > 0).all()
    for name, parameter in loss.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert all(teacher.grad is None for teacher in teachers)


def test_twenty_steps_lower_it() -> None:
    loss, students, teachers = built()
    optimizer = torch.optim.Adam([*(s.requires_grad_() for s in students), *loss.parameters()], lr=0.05)
    values = []
    for _ in range(21):
        value = loss(students, teachers, NO_TARGET)
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values[-1] < 0.7 * values[0]


def test_the_built_loss_is_the_formula_of_the_connected_maps() -> None:
    loss, students, teachers = built()
    connected = [connect(s) for connect, s in zip(loss.connectors, students, strict=True)]
    assert [tuple(c.shape) for c in connected] == TEACHER
    assert min(c.min() for c in connected) < 0  # no activation at the end
    torch.testing.assert_close(loss(students, teachers, NO_TARGET), boundary(connected, teachers))


def test_the_order_of_the_batch_does_not_matter() -> None:
    loss, students, teachers = built()
    order = torch.randperm(6)
    shuffled = loss([s[order] for s in students], [t[order] for t in teachers], NO_TARGET)
    torch.testing.assert_close(shuffled, loss(students, teachers, NO_TARGET))


def test_the_batch_is_averaged() -> None:
    student, teacher = torch.randn(2, 4, 3, 2, 2)
    twice = boundary([torch.cat([student, student])], [torch.cat([teacher, teacher])])
    torch.testing.assert_close(twice, boundary([student], [teacher]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = (300 * torch.randn(2, 4, 3, 4, 4)).to(dtype)  # a square would not fit in float16
    value = ActivationBoundary()(student.requires_grad_(), teacher, NO_TARGET)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, boundary([student.float()], [teacher.float()]))
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_autocast_is_near_float32() -> None:
    loss, students, teachers = built()
    expected = loss(students, teachers, NO_TARGET)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss([s.requires_grad_() for s in students], teachers, NO_TARGET)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=0.02, atol=0)
    assert all(s.grad is not None and s.grad.isfinite().all() for s in students)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 1, 1, 1), (2, 1, 3, 3)])
def test_small_and_constant_inputs_stay_finite(shape: Shape) -> None:
    student = torch.zeros(shape, requires_grad=True)
    value = ActivationBoundary()(student, torch.ones(shape), NO_TARGET)
    value.backward()
    assert value.item() == pytest.approx(student[0].numel() * 3 / 1000)  # (0 - 1)^2 each
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.full(shape, -2 * 3 / 1000 / len(student)))


@pytest.mark.parametrize("channels", [1, 2])
def test_constant_maps_pass_the_connector(channels: int) -> None:
    loss, shape = ActivationBoundary(), (1, channels, 4, 4)
    loss.build([shape], [shape])
    student = torch.ones(shape, requires_grad=True)
    value = loss(student, -torch.ones(shape), NO_TARGET)
    value.backward()
    assert value.item() == pytest.approx(16 * channels * 3 / 1000, rel=0.02)  # normalised to 0, to be -1
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_a_single_position_of_a_single_sample_cannot_be_normalised() -> None:
    loss = ActivationBoundary()
    loss.build([(1, 3, 1, 1)], [(1, 3, 1, 1)])
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        loss(torch.zeros(1, 3, 1, 1), torch.zeros(1, 3, 1, 1), NO_TARGET)


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.floats(1e-2, 1e2))
def test_it_grows_with_the_square_of_the_scale(samples: int, channels: int, side: int, scale: float) -> None:
    student, teacher = torch.randn(2, samples, channels, side, side)
    value = boundary([scale * student], [teacher], scale)
    torch.testing.assert_close(value, scale**2 * boundary([student], [teacher], 1.0), rtol=1e-3, atol=0)


@settings(max_examples=25)
@given(st.floats(-5, 5), st.floats(0.01, 5), st.floats(0.1, 3))
def test_firing_and_silence_mirror_each_other(student: float, teacher: float, margin: float) -> None:
    assert value_of(student, teacher, margin) == pytest.approx(value_of(-student, -teacher, margin), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("target", [torch.tensor([0, 1]), torch.full((2, 3), 1 / 3)])
def test_the_labels_are_not_looked_at(target: Tensor) -> None:
    student, teacher = torch.randn(2, 2, 5)
    assert torch.equal(ActivationBoundary()(student, teacher, target), boundary([student], [teacher]))


def test_the_taps_are_before_the_activation() -> None:
    assert ActivationBoundary.student_tap == ActivationBoundary.teacher_tap == "stages:preact"


@pytest.mark.parametrize("margin", [0.0, -1.0, float("inf"), float("nan")])
def test_a_bad_margin_is_named(margin: float) -> None:
    with pytest.raises(ValueError, match=f"margin must be > 0 and finite, got {margin}"):
        ActivationBoundary(margin)


@pytest.mark.parametrize("shape", [(2, 3), (2, 7, 3)])
def test_connectors_need_maps(shape: Shape) -> None:
    with pytest.raises(ValueError, match=r"connectors are for maps \[N, C, H, W\], got"):
        ActivationBoundary().build([shape], [shape])


def test_features_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"features of one shape, got \(4, 3, 2, 2\) and \(4, 5, 2, 2\)"):
        ActivationBoundary()(torch.zeros(4, 3, 2, 2), torch.zeros(4, 5, 2, 2), NO_TARGET)


def test_as_many_taps_are_needed() -> None:
    loss, maps = ActivationBoundary(), torch.zeros(4, 3, 2, 2)
    loss.build([maps.shape, maps.shape], [maps.shape])
    with pytest.raises(ValueError, match="as many taps as one another, got 2 and 1"):
        loss([maps, maps], maps, NO_TARGET)
