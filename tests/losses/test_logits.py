import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kd_lightning.losses import DIST, DKD, NKD, OFA, WSLD, Loss, MultiLevelKD, SoftTarget
from kd_lightning.losses.logits import (
    check_logits,
    check_temperature,
    check_weight,
    kl,
    largest_class,
    others,
    standardized,
)

NAN, INF = float("nan"), float("inf")


def pair(samples: int = 6, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    student, teacher = 3 * torch.randn(samples, classes).double(), 3 * torch.randn(samples, classes).double()
    return student, teacher, torch.randint(classes, (samples,))


# The parts.


@pytest.mark.parametrize("temperature", [1e-3, 1, 4.0])
def test_a_temperature_is_given_back(temperature: float) -> None:
    assert check_temperature(temperature) == temperature


@pytest.mark.parametrize("temperature", [0.0, -1.0, NAN, -INF])
def test_a_temperature_that_is_not_positive_is_named(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"^temperature must be > 0, got {temperature}$"):
        check_temperature(temperature)


def test_an_infinite_temperature_is_named() -> None:
    with pytest.raises(ValueError, match="^temperature must be finite, got inf$"):
        check_temperature(INF)


@pytest.mark.parametrize("value", [0, 0.0, 8.0])
def test_a_weight_may_be_zero(value: float) -> None:
    assert check_weight("beta", value) == value


@pytest.mark.parametrize("value", [-0.1, INF, NAN])
def test_a_bad_weight_is_named(value: float) -> None:
    with pytest.raises(ValueError, match=f"^beta must be >= 0 and finite, got {value}$"):
        check_weight("beta", value)


def test_logits_of_two_shapes_are_refused() -> None:
    message = r"student and teacher must have logits of one shape, got \(4, 10\) and \(4, 100\)"
    with pytest.raises(ValueError, match=message):
        check_logits(torch.zeros(4, 10), torch.zeros(4, 100))


@pytest.mark.parametrize("shape", [(4,), (4, 10, 1), (4, 0)])
def test_what_are_no_logits_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"logits must be \[N, C\] with C >= 1, got \(4"):
        check_logits(torch.zeros(shape), torch.zeros(shape))


def test_too_few_classes_are_refused_where_more_are_needed() -> None:
    check_logits(torch.zeros(4, 2), torch.zeros(4, 2), classes=2)
    check_logits(torch.zeros(4, 1), torch.zeros(4, 1))
    with pytest.raises(ValueError, match=r"logits must be \[N, C\] with C >= 2, got \(4, 1\)"):
        check_logits(torch.zeros(4, 1), torch.zeros(4, 1), classes=2)


def test_kl_by_hand() -> None:
    # KL((3/4, 1/4) || (1/2, 1/2)) = 0.75 ln 1.5 - 0.25 ln 2 = 0.1308120; the second row agrees.
    teacher, student = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log(), torch.full((2, 2), 0.5).log()
    assert kl(student, teacher).item() == pytest.approx(0.1308120 / 2, abs=1e-6)


def test_the_largest_class_of_a_mixed_target() -> None:
    assert largest_class(torch.tensor([[0.2, 0.7, 0.1], [0.6, 0.0, 0.4]])).tolist() == [1, 0]
    indices = torch.tensor([2, 0])
    assert largest_class(indices) is indices


def test_the_others_keep_their_order() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    assert others(logits, torch.tensor([0, 1, 2])).tolist() == [[2.0, 3.0], [4.0, 6.0], [7.0, 8.0]]


def test_the_gradient_of_the_others_leaves_the_label_out() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    others(logits, torch.tensor([1, 2])).sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]


def test_standardized_logits_have_mean_0_and_unbiased_deviation_1() -> None:
    logits = standardized(5 + 3 * torch.randn(4, 7).double())
    torch.testing.assert_close(logits.mean(1), torch.zeros(4).double(), rtol=0, atol=1e-12)
    # The 1e-7 in the denominator leaves 1 - 1e-7 / std.
    torch.testing.assert_close(logits.square().sum(1) / 6, torch.ones(4).double(), rtol=1e-6, atol=0)


def test_standardized_against_torchdistill() -> None:
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    theirs = losses.LogitStdKDLoss("s", "output", "t", "output", temperature=2.0, alpha=0.5)
    student, teacher, _ = pair()
    torch.testing.assert_close(standardized(student), theirs.standardize(student))
    # Without labels it leaves the factor T^2 = 4 out.
    expected = 4 * theirs({"s": {"output": student}}, {"t": {"output": teacher}})
    torch.testing.assert_close(SoftTarget(2.0, standardize=True)(student, teacher, torch.zeros(0)), expected)


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(1, 5), classes=st.integers(2, 9), scale=st.floats(0.1, 100), shift=st.floats(-10, 10))
def test_standardized_logits_forget_scale_and_shift(samples: int, classes: int, scale: float, shift: float) -> None:
    logits = torch.randn(samples, classes, generator=torch.Generator().manual_seed(samples)).double()
    logits += torch.arange(classes)  # no row is constant
    torch.testing.assert_close(standardized(scale * logits + shift), standardized(logits), rtol=1e-5, atol=1e-5)


def test_standardized_gradcheck() -> None:
    assert torch.autograd.gradcheck(standardized, (pair(3, 4)[0].requires_grad_(),))


@pytest.mark.parametrize("constant", [0.0, 3.0, 0.1, 1e6 / 3])
def test_a_constant_row_becomes_0_with_gradient_0_beside_others(constant: float) -> None:
    # The mean of 7 equal numbers is not always that number: z - mean over 1e-7 could be anything.
    logits = torch.randn(3, 7)
    logits[1] = constant
    logits.requires_grad_()
    value = standardized(logits)
    (value * torch.randn(3, 7)).sum().backward()
    assert value[1].tolist() == [0.0] * 7
    assert logits.grad is not None
    assert logits.grad[1].tolist() == [0.0] * 7
    assert (logits.grad[[0, 2]].abs().sum(1) > 0).all()
    torch.testing.assert_close(value[[0, 2]].std(1), torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_standardized_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits = (30 * torch.randn(4, 10)).to(dtype)
    value = standardized(logits)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, standardized(logits.float()), rtol=0, atol=0)


# What holds of every loss of logits.

LOSSES: dict[str, Callable[[], Loss]] = {
    "SoftTarget": SoftTarget,
    "DKD": DKD,
    "DKD-standardize": lambda: DKD(beta=2.0, standardize=True),
    "DIST": lambda: DIST(beta=2.0, gamma=0.5, temperature=4.0),
    "NKD": lambda: NKD(temperature=2.0),
    "MultiLevelKD": MultiLevelKD,
    "OFA": lambda: OFA(temperature=2.0),
    "WSLD": WSLD,
}
OF_THE_BATCH = {"DIST", "MultiLevelKD"}  # relations between samples
NEEDS_TWO_CLASSES = {"DKD", "DKD-standardize", "NKD"}
every_loss = pytest.mark.parametrize("name", LOSSES)


def finite(loss: Loss, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """The gradient, after it and the value were seen to be finite."""
    student = student.clone().requires_grad_()
    value = loss(student, teacher, target)
    assert value.shape == ()
    assert value.isfinite()
    value.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    return student.grad


@every_loss
def test_what_it_taps_and_needs(name: str) -> None:
    loss = LOSSES[name]()
    assert (loss.student_tap, loss.teacher_tap, loss.needs, list(loss.parameters())) == (
        "logits",
        "logits",
        frozenset(),
        [],
    )


@every_loss
def test_the_gradient_reaches_every_sample_of_the_student(name: str) -> None:
    student, teacher, label = pair()
    assert not teacher.requires_grad
    gradient = finite(LOSSES[name](), student, teacher, label)
    assert (gradient.abs().sum(1) > 0).all()
    # Each is a function of softmax: logits that all rise by the same change nothing.
    torch.testing.assert_close(gradient.sum(1), torch.zeros(6).double(), rtol=0, atol=1e-10)


@every_loss
def test_twenty_steps_lower_it(name: str) -> None:
    images, teacher = torch.randn(16, 8), 3 * torch.randn(16, 5)
    label = teacher.argmax(1)  # a teacher that is wrong raises the weights of WSLD, which has no gradient of them
    student, loss = nn.Linear(8, 5), LOSSES[name]()
    optimizer = torch.optim.Adam(student.parameters(), lr=0.05)
    values = []
    for _ in range(21):
        value = loss(student(images), teacher, label)
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values[-1] < 0.9 * values[0]


@every_loss
def test_the_order_of_the_batch_does_not_matter(name: str) -> None:
    # Also where samples are related: a Pearson coefficient and a Frobenius norm know no order.
    student, teacher, label = pair()
    order, loss = torch.randperm(6), LOSSES[name]()
    torch.testing.assert_close(loss(student[order], teacher[order], label[order]), loss(student, teacher, label))
    assert not torch.isclose(loss(student[order], teacher, label), loss(student, teacher, label))


@every_loss
def test_the_mean_over_two_halves_is_the_whole_unless_samples_are_related(name: str) -> None:
    student, teacher, label = pair()
    loss = LOSSES[name]()
    halves = [loss(student[part], teacher[part], label[part]) for part in (slice(0, 3), slice(3, 6))]
    same = torch.isclose(torch.stack(halves).mean(), loss(student, teacher, label))
    assert bool(same) == (name not in OF_THE_BATCH)


@every_loss
def test_a_shift_of_the_logits_of_a_sample_changes_nothing(name: str) -> None:
    student, teacher, label = pair()
    loss, shift = LOSSES[name](), torch.randn(6, 1).double()
    torch.testing.assert_close(loss(student + shift, teacher - 2 * shift, label), loss(student, teacher, label))


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype, autocast: bool) -> None:
    student, teacher, label = (10 * torch.randn(4, 20)).to(dtype), (10 * torch.randn(4, 20)).to(dtype), torch.arange(4)
    loss = LOSSES[name]()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value, gradient = loss(student, teacher, label), finite(loss, student, teacher, label)
    assert (value.dtype, gradient.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(value, loss(student.float(), teacher.float(), label))
    exact = finite(loss, student.float(), teacher.float(), label)
    torch.testing.assert_close(gradient, exact.to(dtype))


@every_loss
def test_autocast_changes_nothing_of_float32(name: str) -> None:
    student, teacher, label = (part.float() if part.is_floating_point() else part for part in pair())
    loss = LOSSES[name]()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher, label)
    torch.testing.assert_close(value, loss(student, teacher, label), rtol=0, atol=0)


@every_loss
def test_a_network_under_autocast(name: str) -> None:
    images, teacher, label = torch.randn(8, 6), 3 * torch.randn(8, 5), torch.randint(5, (8,))
    student, loss = nn.Linear(6, 5), LOSSES[name]()
    exact = copy.deepcopy(student)
    loss(exact(images), teacher, label).backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = student(images)
        value = loss(logits, teacher.bfloat16(), label)
    assert (logits.dtype, value.dtype) == (torch.bfloat16, torch.float32)
    value.backward()
    assert student.weight.grad is not None
    assert exact.weight.grad is not None
    assert (student.weight.grad - exact.weight.grad).norm() < 0.05 * exact.weight.grad.norm()


@every_loss
@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("constant", ["neither", "student", "teacher", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_small_and_constant_logits_stay_finite(
    name: str, samples: int, classes: int, constant: str, dtype: torch.dtype
) -> None:
    student, teacher, label = (part.to(dtype) if part.is_floating_point() else part for part in pair(samples, classes))
    if constant in ("student", "both"):
        student = torch.full_like(student, 0.1)
    if constant in ("teacher", "both"):
        teacher = torch.full_like(teacher, 1e4 / 3)
    finite(LOSSES[name](), student, teacher, label)


@every_loss
@pytest.mark.parametrize("scale", [1e-3, 1e2, 1e4])
def test_tiny_and_extreme_logits_stay_finite(name: str, scale: float) -> None:
    student, teacher, label = (part.float() if part.is_floating_point() else part for part in pair())
    finite(LOSSES[name](), scale * student, scale * teacher, label)


@every_loss
def test_one_class(name: str) -> None:
    logits, label = torch.randn(2, 4, 1), torch.zeros(4, dtype=torch.int64)
    if name in NEEDS_TWO_CLASSES:
        with pytest.raises(ValueError, match=r"(needs at least 2 classes|C >= 2), got .*\(4, 1\)"):
            LOSSES[name]()(logits[0], logits[1], label)
    else:
        gradient = finite(LOSSES[name](), logits[0], logits[1], label)
        assert gradient.abs().max() < 1e-6  # there is nothing to learn


@every_loss
def test_logits_of_two_shapes_are_refused_by_every_loss(name: str) -> None:
    message = r"logits of one shape, got \(4, 10\) and \(4, 5\)"
    with pytest.raises(ValueError, match=message):
        LOSSES[name]()(torch.randn(4, 10), torch.randn(4, 5), torch.zeros(4, dtype=torch.int64))


@every_loss
def test_a_one_hot_target_is_its_label(name: str) -> None:
    student, teacher, label = pair()
    loss, one_hot = LOSSES[name](), F.one_hot(label, 5).double()
    torch.testing.assert_close(loss(student, teacher, one_hot), loss(student, teacher, label))


@every_loss
def test_a_mixed_target_is_taken_as_the_docstring_says(name: str) -> None:
    student, teacher, label = pair()
    loss, mixed = LOSSES[name](), 0.7 * F.one_hot(label, 5).double() + 0.3 * F.one_hot((label + 1) % 5, 5).double()
    by_label, by_mix = loss(student, teacher, label), loss(student, teacher, mixed)
    if name == "WSLD":  # as it is
        assert not torch.isclose(by_label, by_mix)
    else:  # by its largest class, or not at all
        torch.testing.assert_close(by_mix, by_label)


@every_loss
def test_the_inputs_are_not_changed(name: str) -> None:
    given_parts = pair()
    before = [part.clone() for part in given_parts]
    LOSSES[name]()(*given_parts)
    assert all(torch.equal(a, b) for a, b in zip(given_parts, before, strict=True))


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(sorted(LOSSES)),
    samples=st.integers(1, 6),
    classes=st.integers(2, 12),
    scale=st.floats(1e-3, 50),
    seed=st.integers(0, 2**16),
)
def test_no_loss_is_negative(name: str, samples: int, classes: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, samples, classes, generator=generator).double()
    label = torch.randint(classes, (samples,), generator=generator)
    value = LOSSES[name]()(student, teacher, label).item()
    assert math.isfinite(value)
    assert value >= -1e-6
