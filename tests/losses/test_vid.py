import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kd_lightning.losses import VID
from kd_lightning.losses.adapters import Shape
from kd_lightning.losses.vid import inverse_softplus, negative_log_likelihood, regressor

NO_TARGET = torch.zeros(0, dtype=torch.int64)


def built(init_variance: float = 5.0, student: Shape = (6, 3, 8, 8), teacher: Shape = (6, 5, 4, 4)) -> VID:
    loss = VID(init_variance)
    loss.build([student], [teacher])
    return loss


def pair(student: Shape = (6, 3, 8, 8), teacher: Shape = (6, 5, 4, 4)) -> tuple[Tensor, Tensor]:
    return torch.randn(student), torch.randn(teacher)


def test_by_hand() -> None:
    # Channel 1, v = 1: (1 - 3)^2 / 1 + ln 1 = 4; channel 2, v = 4: (2 - 0)^2 / 4 + ln 4 = 1 + 1.3862944.
    # Half of the mean: (4 + 2.3862944) / 4 = 1.5965736.
    mean, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 0.0]])
    assert negative_log_likelihood(mean, teacher, torch.tensor([1.0, 4.0])).item() == pytest.approx(1.5965736)


def test_not_built_it_is_the_bare_formula_with_the_initial_variance() -> None:
    # ((1 - 3)^2 / 5 + ln 5) / 2 = (0.8 + 1.6094379) / 2
    value = VID()(torch.tensor([[1.0]]), torch.tensor([[3.0]]), NO_TARGET)
    assert value.item() == pytest.approx(1.2047190)


def test_against_a_loop() -> None:
    mean, teacher = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    variance = [0.3, 1.0, 7.0]
    total = 0.0
    for n in range(2):
        for c in range(3):
            for error in (mean - teacher)[n, c].flatten().tolist():
                total += (error**2 / variance[c] + math.log(variance[c])) / 2
    value = negative_log_likelihood(mean, teacher, torch.tensor(variance))
    assert value.item() == pytest.approx(total / 24, rel=1e-5)


def test_against_torch() -> None:
    mean, teacher, variance = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2), torch.rand(3) + 0.1
    expected = F.gaussian_nll_loss(mean, teacher, variance[:, None, None].expand(4, 3, 2, 2))
    torch.testing.assert_close(negative_log_likelihood(mean, teacher, variance), expected)


@pytest.mark.parametrize("taps", [1, 3])
def test_against_torchdistill(taps: int) -> None:
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    students, teachers = torch.randn(taps, 4, 3, 2, 2), torch.randn(taps, 4, 3, 2, 2)
    # Its regressor gives (mean, variance); the unbuilt loss has the initial variance, 2.
    pairs = {str(i): {side: {"path": str(i), "io": "output"} for side in ("student", "teacher")} for i in range(taps)}
    given: dict[str, Any] = {str(i): {"output": (s, torch.tensor(2.0))} for i, s in enumerate(students)}
    expected = losses.VIDLoss(pairs)(given, {str(i): {"output": t} for i, t in enumerate(teachers)})
    torch.testing.assert_close(VID(2.0)(list(students), list(teachers), NO_TARGET), expected)


def test_the_adapters_are_those_of_torchdistill() -> None:
    wrapper = pytest.importorskip("torchdistill.models.wrapper")
    # It hands its variance's parameter an eps of its own; ours is 1e-5. The maps have one size: it does not pool.
    theirs = wrapper.Regressor4VID(3, 5, 5, eps=1e-5, init_pred_var=5.0)
    loss = built(student=(6, 3, 4, 4))
    ours = [*loss.regressors.parameters(), *loss.log_scales]
    for parameter, other in zip(ours, [*theirs.regressor.parameters(), theirs.soft_plus_param], strict=True):
        assert parameter.shape == other.shape
        with torch.no_grad():
            other.copy_(parameter)
    student, teacher = pair((6, 3, 4, 4))
    mean, variance = theirs(student)
    expected = (((mean - teacher) ** 2 / variance + variance.log()) / 2).mean()
    torch.testing.assert_close(loss(student, teacher, NO_TARGET), expected)


@pytest.mark.parametrize("variance", [2e-5, 0.1, 1.0, 5.0, 100.0])
def test_the_variance_starts_where_it_is_told(variance: float) -> None:
    (v,) = built(variance).variances(1)
    assert v.shape == (5,)
    torch.testing.assert_close(v, torch.full((5,), variance), rtol=1e-3, atol=0)


@settings(max_examples=30)
@given(st.floats(1e-6, 1e3))
def test_inverse_softplus(value: float) -> None:
    x = torch.tensor(inverse_softplus(value), dtype=torch.float64)
    assert F.softplus(x).item() == pytest.approx(value, rel=1e-6)


def test_the_variances_are_learnt() -> None:
    loss = built()
    (scale,) = loss.log_scales
    assert any(parameter is scale for parameter in loss.parameters())
    student, teacher = pair()
    loss(student, teacher, NO_TARGET).backward()
    assert scale.grad is not None
    assert (scale.grad.abs() > 0).all()


def test_the_gradient_of_the_variance_by_hand() -> None:
    # One entry, v = 5, error 0: d(log v / 2)/dx = 1 / (2 v) * sigmoid(x), where sigmoid(x) = 1 - exp(-softplus(x)).
    loss = built(student=(1, 1), teacher=(1, 1))
    with torch.no_grad():
        for parameter in loss.regressors.parameters():
            parameter.zero_()
    loss(torch.ones(1, 1), torch.zeros(1, 1), NO_TARGET).backward()
    (scale,) = loss.log_scales
    assert scale.grad is not None
    assert scale.grad.item() == pytest.approx(0.1 * (1 - math.exp(-5)), rel=1e-4)


def test_twenty_steps_change_the_variances_towards_the_errors() -> None:
    loss = built(student=(64, 3), teacher=(64, 2))
    student, teacher = torch.randn(64, 3), torch.randn(64, 2) * torch.tensor([0.1, 10.0])
    before = loss.variances(1)[0].detach().clone()
    optimizer = torch.optim.Adam(loss.log_scales, lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        loss(student, teacher, NO_TARGET).backward()
        optimizer.step()
    after = loss.variances(1)[0].detach()
    # A channel with small errors is surer than 5, one with large errors is less sure.
    assert after[0] < before[0] - 1
    assert after[1] > before[1] + 1


def test_the_best_variance_is_the_mean_squared_error() -> None:
    mean, teacher = torch.randn(50, 1), torch.randn(50, 1)
    error = (mean - teacher).square().mean()
    best = negative_log_likelihood(mean, teacher, error.view(1))
    assert best.item() == pytest.approx((1 + math.log(error.item())) / 2, rel=1e-5)
    for factor in (0.9, 1.1):
        assert negative_log_likelihood(mean, teacher, factor * error.view(1)) > best


def test_at_equality_it_is_half_the_logarithm_of_the_variance() -> None:
    # Not 0: log(5) / 2, the least for this variance; below 0 where the variance is below 1.
    teacher = torch.randn(4, 3, 2, 2)
    student = teacher.clone().requires_grad_()
    value = VID()(student, teacher, NO_TARGET)
    value.backward()
    assert value.item() == pytest.approx(math.log(5) / 2)
    assert student.grad is not None
    assert student.grad.abs().max() == 0
    assert VID()(teacher + 1, teacher, NO_TARGET) > value
    assert VID(0.5)(teacher, teacher, NO_TARGET).item() == pytest.approx(math.log(0.5) / 2)


def test_gradcheck() -> None:
    mean, teacher = torch.randn(2, 3, 2, 2).double(), torch.randn(2, 3, 2, 2).double()
    variance = (torch.rand(3) + 0.5).double()
    inputs = tuple(x.requires_grad_() for x in (mean, teacher, variance))
    assert torch.autograd.gradcheck(negative_log_likelihood, inputs)


def test_the_gradient_reaches_student_and_adapters() -> None:
    loss, (student, teacher) = built(), pair()
    loss(student.requires_grad_(), teacher, NO_TARGET).backward()
    assert student.grad is not None
    assert (student.grad.flatten(1).abs().sum(1) > 0).all()
    for name, parameter in loss.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert teacher.grad is None


def test_twenty_steps_lower_it() -> None:
    loss, (student, teacher) = built(), pair()
    optimizer = torch.optim.Adam([student.requires_grad_(), *loss.parameters()], lr=0.05)
    values = []
    for _ in range(21):
        value = loss(student, teacher, NO_TARGET)
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values[-1] < 0.9 * values[0]


def test_each_tap_has_its_regressor_and_variances() -> None:
    loss = VID()
    shapes = [(6, 3, 8, 8), (6, 4, 4, 4)], [(6, 5, 8, 8), (6, 7, 4, 4)]
    loss.build(*shapes)
    students, teachers = ([torch.randn(shape) for shape in side] for side in shapes)
    with torch.no_grad():
        loss.log_scales[1].fill_(0.0)  # v = ln 2 + 1e-5
    total = 0.0
    for i, v in enumerate((5.0, math.log(2) + 1e-5)):
        error = (loss.regressors[i](students[i]) - teachers[i]).square().mean().item()
        total += (error / v + math.log(v)) / 2
    assert loss(students, teachers, NO_TARGET).item() == pytest.approx(total, rel=1e-5)


def test_the_regressor_has_three_layers_and_no_activation_at_the_end() -> None:
    made = regressor((2, 3, 8, 8), (2, 5, 4, 4))
    assert sum(parameter.numel() for parameter in made.parameters()) == 3 * 5 + 25 + 25
    x = made(torch.randn(2, 3, 8, 8))
    assert x.shape == (2, 5, 4, 4)
    assert x.min() < 0


def test_the_larger_map_is_averaged_first() -> None:
    # A student smaller than its teacher: the teacher's 1, 3, 5, 7 become 4. ((2 - 4)^2 / 1 + ln 1) / 2 = 2.
    student, teacher = torch.tensor([[[[2.0]]]]), torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    assert VID(1.0)(student, teacher, NO_TARGET).item() == pytest.approx(2.0)


def test_the_order_of_the_batch_does_not_matter() -> None:
    loss, (student, teacher), order = built(), pair(), torch.randperm(6)
    torch.testing.assert_close(loss(student[order], teacher[order], NO_TARGET), loss(student, teacher, NO_TARGET))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = (300 * torch.randn(2, 4, 3, 4, 4)).to(dtype)
    value = VID()(student.requires_grad_(), teacher, NO_TARGET)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, VID()(student.float(), teacher.float(), NO_TARGET))
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_autocast_is_near_float32() -> None:
    loss, (student, teacher) = built(0.1), pair()
    expected = loss(student, teacher, NO_TARGET)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student.requires_grad_(), teacher, NO_TARGET)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=0.01, atol=0)
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 1, 1, 1), (2, 2, 3, 3)])
def test_small_and_constant_inputs_stay_finite(shape: Shape) -> None:
    loss = built(student=shape, teacher=shape)
    student = torch.full(shape, 2.0, requires_grad=True)
    value = loss(student, torch.full(shape, 3.0), NO_TARGET)
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())


def test_a_variance_cannot_fall_to_zero() -> None:
    loss = built(student=(2, 3), teacher=(2, 3))
    with torch.no_grad():
        loss.log_scales[0].fill_(-200.0)
    (v,) = loss.variances(1)
    torch.testing.assert_close(v, torch.full((3,), 1e-5))
    assert loss(torch.randn(2, 3), torch.randn(2, 3), NO_TARGET).isfinite()


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.floats(1e-2, 1e2))
def test_a_common_scale_adds_its_logarithm(samples: int, channels: int, side: int, scale: float) -> None:
    mean, teacher = torch.randn(2, samples, channels, side, side).double()
    variance = torch.rand(channels).double() + 0.1
    scaled = negative_log_likelihood(scale * mean, scale * teacher, scale**2 * variance)
    torch.testing.assert_close(scaled, negative_log_likelihood(mean, teacher, variance) + math.log(scale))


@pytest.mark.parametrize("target", [torch.tensor([0, 1]), torch.full((2, 3), 1 / 3)])
def test_the_labels_are_not_looked_at(target: Tensor) -> None:
    student, teacher = torch.randn(2, 2, 5)
    assert torch.equal(VID()(student, teacher, target), VID()(student, teacher, NO_TARGET))


def test_the_default_tap() -> None:
    assert VID.student_tap == VID.teacher_tap == "stages"


@pytest.mark.parametrize("variance", [0.0, -1.0, 1e-5, float("inf"), float("nan")])
def test_a_bad_variance_is_named(variance: float) -> None:
    with pytest.raises(ValueError, match=f"init_variance must be > 1e-05 and finite, got {variance}"):
        VID(variance)


def test_a_map_does_not_meet_a_vector() -> None:
    with pytest.raises(ValueError, match=r"both be maps or both be vectors, got \(2, 3, 4, 4\) and \(2, 5\)"):
        VID().build([(2, 3, 4, 4)], [(2, 5)])


def test_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"VID needs maps \[N, C, H, W\] or vectors \[N, D\], got \(2, 7, 3\)"):
        VID().build([(2, 7, 3)], [(2, 7, 5)])


def test_features_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"features of one shape, got \(4, 3\) and \(4, 5\)"):
        VID()(torch.zeros(4, 3), torch.zeros(4, 5), NO_TARGET)


def test_as_many_taps_are_needed() -> None:
    loss = VID()
    loss.build([(4, 3), (4, 3)], [(4, 3)])
    with pytest.raises(ValueError, match="as many taps as one another, got 2 and 1"):
        loss([torch.zeros(4, 3), torch.zeros(4, 3)], torch.zeros(4, 3), NO_TARGET)
