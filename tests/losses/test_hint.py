import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kd_lightning.losses import Hint
from kd_lightning.losses.adapters import Adapter, Shape
from kd_lightning.losses.hint import hint

NO_TARGET = torch.zeros(0, dtype=torch.int64)
MAPS = (6, 3, 8, 8), (6, 5, 4, 4)
SHAPES = {"conv1x1": MAPS, "conv_bn_relu": MAPS, "linear": ((6, 3), (6, 5)), "none": ((6, 5, 8, 8), (6, 5, 4, 4))}


def built(kind: Adapter) -> tuple[Hint, Tensor, Tensor]:
    student, teacher = SHAPES[kind]
    loss = Hint(kind)
    loss.build([student], [teacher])
    return loss, torch.randn(student), torch.randn(teacher).relu()


def test_by_hand() -> None:
    # ((1 - 0)^2 + (2 - 4)^2 + (0 + 1)^2 + (3 - 3)^2) / 4 = 1.5
    student, teacher = torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([[0.0, 4.0], [-1.0, 3.0]])
    assert hint(student, teacher).item() == pytest.approx(1.5)
    assert Hint("none")(student, teacher, NO_TARGET).item() == pytest.approx(1.5)


def test_the_larger_map_is_averaged_first() -> None:
    # The mean of 1, 2, 3, 6 is 3, and (3 - 5)^2 = 4, whichever is the larger.
    large, small = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]), torch.tensor([[[[5.0]]]])
    assert hint(large, small).item() == pytest.approx(4.0)
    assert hint(small, large).item() == pytest.approx(4.0)


def test_against_a_loop() -> None:
    student, teacher = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    pairs = zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)
    squares = [(s - t) ** 2 for s, t in pairs]
    assert hint(student, teacher).item() == pytest.approx(sum(squares) / len(squares), rel=1e-5)


@pytest.mark.parametrize("shape", [(4, 5), (4, 7, 5), (4, 5, 3, 3)])
def test_against_torch(shape: Shape) -> None:
    student, teacher = torch.randn(shape), torch.randn(shape)
    torch.testing.assert_close(Hint()(student, teacher, NO_TARGET), F.mse_loss(student, teacher))


def test_taps_are_summed() -> None:
    students, teachers = [torch.randn(2, 3, 4, 4), torch.randn(2, 5)], [torch.randn(2, 3, 4, 4), torch.randn(2, 5)]
    expected = F.mse_loss(students[0], teachers[0]) + F.mse_loss(students[1], teachers[1])
    torch.testing.assert_close(Hint("none")(students, teachers, NO_TARGET), expected)


def test_each_tap_has_its_adapter() -> None:
    loss = Hint("conv1x1")
    loss.build([(2, 3, 8, 8), (2, 4, 4, 4)], [(2, 5, 8, 8), (2, 6, 4, 4)])
    students = [torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4)]
    teachers = [torch.randn(2, 5, 8, 8), torch.randn(2, 6, 4, 4)]
    parts = [F.mse_loss(a(s), t) for a, s, t in zip(loss.adapters, students, teachers, strict=True)]
    torch.testing.assert_close(loss(students, teachers, NO_TARGET), parts[0] + parts[1])


def test_the_built_loss_compares_what_the_adapter_gives() -> None:
    loss, student, teacher = built("conv_bn_relu")
    (convolution, _, _) = loss.adapters[0]
    z = convolution(student)
    # Batch normalisation of a new module: scale 1, shift 0, eps 1e-5, the biased variance.
    z = (z - z.mean((0, 2, 3), keepdim=True)) / (z.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected = (z.clamp(min=0) - teacher).square().mean()
    torch.testing.assert_close(loss(student, teacher, NO_TARGET), expected)


def test_the_minimum_is_zero_at_equality() -> None:
    teacher = torch.randn(4, 3, 2, 2)
    student = teacher.clone().requires_grad_()
    value = Hint("none")(student, teacher, NO_TARGET)
    value.backward()
    assert value.item() == 0
    assert student.grad is not None
    assert student.grad.abs().max() == 0
    assert Hint("none")(teacher + 0.1, teacher, NO_TARGET).item() == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("student", [(2, 3, 2, 2), (2, 3, 4, 4)])
def test_gradcheck(student: Shape) -> None:
    s, t = torch.randn(student).double().requires_grad_(), torch.randn(2, 3, 2, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(hint, (s, t))


@pytest.mark.parametrize("kind", ["conv1x1", "conv_bn_relu", "linear"])
def test_the_gradient_reaches_student_and_adapter(kind: Adapter) -> None:
    loss, student, teacher = built(kind)
    loss(student.requires_grad_(), teacher, NO_TARGET).backward()
    assert student.grad is not None
    assert (student.grad.flatten(1).abs().sum(1) > 0).all()
    for name, parameter in loss.named_parameters():
        assert parameter.grad is not None, name
        # The normalisation takes the convolution's bias away.
        assert parameter.grad.abs().max() > 0 or name.endswith("0.bias"), name
    assert teacher.grad is None


@pytest.mark.parametrize("kind", ["none", "conv1x1", "conv_bn_relu", "linear"])
def test_twenty_steps_lower_it(kind: Adapter) -> None:
    loss, student, teacher = built(kind)
    optimizer = torch.optim.Adam([student.requires_grad_(), *loss.parameters()], lr=0.05)
    values = []
    for _ in range(21):
        value = loss(student, teacher, NO_TARGET)
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize("kind", ["none", "conv1x1", "conv_bn_relu", "linear"])
def test_the_order_of_the_batch_does_not_matter(kind: Adapter) -> None:
    loss, student, teacher = built(kind)
    order = torch.randperm(6)
    torch.testing.assert_close(loss(student[order], teacher[order], NO_TARGET), loss(student, teacher, NO_TARGET))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = (300 * torch.randn(2, 4, 3, 4, 4)).to(dtype)  # a square would not fit in float16
    value = Hint("none")(student.requires_grad_(), teacher, NO_TARGET)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, F.mse_loss(student.float(), teacher.float()))
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["none", "conv1x1", "conv_bn_relu", "linear"])
def test_autocast_is_near_float32(kind: Adapter) -> None:
    loss, student, teacher = built(kind)
    expected = loss(student, teacher, NO_TARGET)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student.requires_grad_(), teacher, NO_TARGET)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=0.02, atol=0.01)
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 1, 1, 1), (2, 1, 3, 3)])
def test_small_and_constant_inputs_stay_finite(shape: Shape) -> None:
    student = torch.full(shape, 2.0, requires_grad=True)
    value = Hint("none")(student, torch.full(shape, 5.0), NO_TARGET)
    value.backward()
    assert value.item() == pytest.approx(9.0)
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.full(shape, -6.0 / student.numel()))  # 2 (2 - 5) / n


@pytest.mark.parametrize("channels", [1, 2])
def test_constant_maps_pass_the_regressor(channels: int) -> None:
    loss = Hint()
    loss.build([(1, channels, 4, 4)], [(1, channels, 4, 4)])
    student = torch.ones(1, channels, 4, 4, requires_grad=True)
    value = loss(student, torch.ones(1, channels, 4, 4), NO_TARGET)
    value.backward()
    assert value.item() == pytest.approx(1.0, rel=1e-2)  # a constant is normalised to 0
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_a_single_position_of_a_single_sample_cannot_be_normalised() -> None:
    loss = Hint()
    loss.build([(1, 3, 1, 1)], [(1, 3, 1, 1)])
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        loss(torch.zeros(1, 3, 1, 1), torch.zeros(1, 3, 1, 1), NO_TARGET)


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 8), st.floats(1e-3, 1e3))
def test_it_grows_with_the_square_of_the_scale(samples: int, channels: int, side: int, scale: float) -> None:
    student, teacher = torch.randn(2, samples, channels, side, side)
    torch.testing.assert_close(
        hint(scale * student, scale * teacher), scale**2 * hint(student, teacher), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("target", [torch.tensor([0, 1]), torch.full((2, 3), 1 / 3)])
def test_the_labels_are_not_looked_at(target: Tensor) -> None:
    student, teacher = torch.randn(2, 2, 5)
    assert torch.equal(Hint("none")(student, teacher, target), hint(student, teacher))


def test_the_default_tap() -> None:
    assert Hint.student_tap == Hint.teacher_tap == "stage:2"
    assert isinstance(Hint().adapters, nn.ModuleList)


def test_a_bad_adapter_is_named() -> None:
    with pytest.raises(ValueError, match=r"adapter must be one of \['none', .*'linear'\], got 'mlp'"):
        Hint("mlp")  # type: ignore[arg-type]


def test_features_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"features of one shape, got \(4, 3\) and \(4, 5\): build the loss"):
        Hint("none")(torch.zeros(4, 3), torch.zeros(4, 5), NO_TARGET)


def test_as_many_taps_are_needed() -> None:
    loss = Hint("none")
    loss.build([(4, 3), (4, 3)], [(4, 3)])
    with pytest.raises(ValueError, match="as many taps as one another, got 2 and 1"):
        loss([torch.zeros(4, 3), torch.zeros(4, 3)], torch.zeros(4, 3), NO_TARGET)
