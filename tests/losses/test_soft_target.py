import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.losses import CrossEntropy, SoftTarget, distillation_loss, soft_target
from kd_lightning.losses.logits import standardized
from kd_lightning.models import Network

LN3 = math.log(3)
NO_TARGET = torch.zeros(0, dtype=torch.int64)


def pair(samples: int = 6, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    student, teacher = 3 * torch.randn(samples, classes).double(), 3 * torch.randn(samples, classes).double()
    return student, teacher, torch.randint(classes, (samples,))


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.1308120), (2.0, 0.5232481)])
def test_by_hand(temperature: float, expected: float) -> None:
    # p_t = (3/4, 1/4), p_s = (1/2, 1/2): KL = 0.75 ln 1.5 - 0.25 ln 2 = 0.1308120, times T^2.
    teacher = torch.tensor([[temperature * LN3, 0.0]])
    assert soft_target(torch.zeros(1, 2), teacher, temperature).item() == pytest.approx(expected, abs=1e-6)


def test_the_batch_is_averaged_and_the_classes_are_summed() -> None:
    # The second sample agrees, so the mean is half of 0.1308120.
    student, teacher = torch.zeros(2, 2), torch.tensor([[LN3, 0.0], [1.0, 1.0]])
    assert soft_target(student, teacher, 1.0).item() == pytest.approx(0.0654060, abs=1e-6)


def test_the_direction_is_from_the_teacher() -> None:
    # KL((1/2, 1/2) || (3/4, 1/4)) = ln 2 - 0.5 ln 3 = 0.1438410, which is not KL the other way round.
    assert soft_target(torch.tensor([[LN3, 0.0]]), torch.zeros(1, 2), 1.0).item() == pytest.approx(0.1438410, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_against_the_definition(temperature: float) -> None:
    student, teacher, _ = pair()
    p_s, p_t = torch.softmax(student / temperature, 1), torch.softmax(teacher / temperature, 1)
    expected = temperature**2 * (p_t * (p_t / p_s).log()).sum(1).mean()
    torch.testing.assert_close(soft_target(student, teacher, temperature), expected)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("alpha", [0.1, 0.7])
def test_against_torchdistill(temperature: float, alpha: float) -> None:
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    student, teacher, labels = pair()
    # Its alpha is the share of the labels, ours the share of the teacher.
    theirs = losses.KDLoss("s", "output", "t", "output", temperature=temperature, alpha=1 - alpha)
    expected = theirs({"s": {"output": student}}, {"t": {"output": teacher}}, labels)
    torch.testing.assert_close(distillation_loss(student, teacher, labels, temperature, alpha), expected)


def test_against_torchdistill_without_labels() -> None:
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    student, teacher, _ = pair()
    # Without labels it leaves the factor T^2 = 16 out.
    theirs = losses.KDLoss("s", "output", "t", "output", temperature=4.0, alpha=0.0)
    expected = 16 * theirs({"s": {"output": student}}, {"t": {"output": teacher}})
    torch.testing.assert_close(SoftTarget(4.0)(student, teacher, NO_TARGET), expected)


def test_against_timm() -> None:
    task = pytest.importorskip("timm.task")
    student, teacher = (Network("cifar_resnet8").build(5, seed=seed) for seed in (0, 1))
    theirs = task.LogitDistillationTask(
        student, task.DistillationTeacher(teacher), distill_loss_weight=0.7, task_loss_weight=0.3, temperature=4.0
    )
    images, labels = torch.randn(6, 3, 8, 8), torch.randint(5, (6,))
    found = theirs(images, labels)
    told, own = teacher.eval()(images), student(images)
    torch.testing.assert_close(soft_target(own, told, 4.0), found["kd_loss"])
    torch.testing.assert_close(distillation_loss(own, told, labels, T=4.0, alpha=0.7), found["loss"])


@pytest.mark.parametrize("standardize", [False, True])
def test_the_minimum_is_zero_at_equality(standardize: bool) -> None:
    student, teacher, _ = pair()
    loss, same = SoftTarget(standardize=standardize), teacher.clone().requires_grad_()
    value = loss(same, teacher, NO_TARGET)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(same.grad, torch.zeros_like(teacher))
    assert loss(student, teacher, NO_TARGET) > 0.1


def test_a_shift_of_the_logits_changes_nothing() -> None:
    student, teacher, _ = pair()
    torch.testing.assert_close(soft_target(student + 5, teacher - 3), soft_target(student, teacher))


@pytest.mark.parametrize("standardize", [False, True])
def test_gradcheck(standardize: bool) -> None:
    student, teacher, _ = pair(3, 4)
    loss = SoftTarget(standardize=standardize)
    assert torch.autograd.gradcheck(
        lambda s, t: loss(s, t, NO_TARGET), (student.requires_grad_(), teacher.requires_grad_())
    )


def test_the_gradient_keeps_its_size_when_the_temperature_grows() -> None:
    student, teacher, _ = pair(6, 10)
    gradients = {}
    for temperature in (50.0, 100.0, 200.0):
        logits = student.clone().requires_grad_()
        soft_target(logits, teacher, temperature).backward()
        gradients[temperature] = logits.grad
    # Hinton et al. 2015, eq. 4: (z_s - z_t) / C for logits of zero mean, here over the batch of 6.
    centred = [z - z.mean(1, keepdim=True) for z in (student, teacher)]
    limit = (centred[0] - centred[1]) / 10 / 6
    errors = []
    for gradient in gradients.values():
        assert gradient is not None
        errors.append(((gradient - limit).norm() / limit.norm()).item())
    assert errors[0] < 0.1
    assert errors[0] > 1.8 * errors[1] > 3.2 * errors[2]


@pytest.mark.parametrize("loss", [SoftTarget(), SoftTarget(2.0, standardize=True)])
def test_the_order_of_the_batch_does_not_matter(loss: SoftTarget) -> None:
    student, teacher, _ = pair()
    order = torch.randperm(6)
    torch.testing.assert_close(loss(student[order], teacher[order], NO_TARGET), loss(student, teacher, NO_TARGET))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("standardize", [False, True])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype, standardize: bool) -> None:
    student, teacher = (30 * torch.randn(2, 4, 100)).to(dtype)
    loss = SoftTarget(standardize=standardize)
    value = loss(student, teacher, NO_TARGET)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(student.float(), teacher.float(), NO_TARGET))


def test_extreme_logits_stay_finite() -> None:
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    value = soft_target(student, torch.tensor([[-1e4, 1e4, 0.0]]), 1.0)
    value.backward()
    assert value.item() == pytest.approx(2e4)
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.tensor([[1.0, -1.0, 0.0]]))


def test_logits_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"logits of one shape, got \(4, 10\) and \(4, 1\)"):
        soft_target(torch.zeros(4, 10), torch.zeros(4, 1))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize(
    "call",
    [
        SoftTarget,
        lambda t: soft_target(torch.zeros(1, 2), torch.zeros(1, 2), t),
        lambda t: distillation_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), T=t),
    ],
)
def test_a_bad_temperature_is_named(call: Callable[[float], object], temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature must be > 0, got {temperature}"):
        call(temperature)


def test_standardized_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 3.0]])  # means 2 and 1, deviations 1 and sqrt(3)
    expected = torch.tensor([[-1.0, 0.0, 1.0], [-0.5773503, -0.5773503, 1.1547005]])
    torch.testing.assert_close(standardized(logits), expected)


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 1.1504208), (2.0, 1.2806267)])
def test_a_standardized_loss_by_hand(temperature: float, expected: float) -> None:
    # z_s = (1, 0, -1), z_t = (-1, 0, 1): T^2 (2 / T) (p_t[2] - p_t[0]).
    student, teacher = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[10.0, 20.0, 30.0]])
    loss = SoftTarget(temperature, standardize=True)(student, teacher, NO_TARGET)
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_constant_logits_can_be_standardized() -> None:
    logits = torch.full((2, 4), 3.0, requires_grad=True)
    SoftTarget(standardize=True)(logits, torch.randn(2, 4), NO_TARGET).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_a_single_class_cannot_be_standardized() -> None:
    with pytest.raises(ValueError, match=r"standardize needs at least 2 classes, got logits of shape \(4, 1\)"):
        SoftTarget(standardize=True)(torch.zeros(4, 1), torch.zeros(4, 1), NO_TARGET)


def test_the_classic_formula_by_hand() -> None:
    # 0.7 * 0.1438410 (KL) + 0.3 * 0.2876821 (CE)
    value = distillation_loss(torch.tensor([[LN3, 0.0]]), torch.zeros(1, 2), torch.tensor([0]), T=1.0, alpha=0.7)
    assert value.item() == pytest.approx(0.1869933, abs=1e-6)


def test_the_classic_formula_is_its_terms() -> None:
    student, teacher, labels = pair()
    kl, ce = SoftTarget(4.0)(student, teacher, labels), CrossEntropy()(student, None, labels)
    torch.testing.assert_close(distillation_loss(student, teacher, labels), 0.7 * kl + 0.3 * ce)
    torch.testing.assert_close(distillation_loss(student, teacher, labels, alpha=1.0), kl)
    torch.testing.assert_close(distillation_loss(student, teacher, labels, alpha=0.0), ce)


def test_the_classic_formula_takes_mixed_labels() -> None:
    student, teacher, labels = pair()
    torch.testing.assert_close(
        distillation_loss(student, teacher, F.one_hot(labels, 5).double()), distillation_loss(student, teacher, labels)
    )


def test_the_gradient_reaches_the_student_alone() -> None:
    student, teacher, labels = pair()
    distillation_loss(student.requires_grad_(), teacher.requires_grad_(), labels).backward()
    assert student.grad is not None
    assert (student.grad.abs().sum(1) > 0).all()
    assert teacher.grad is None


def test_twenty_steps_lower_it() -> None:
    images, teacher, labels = torch.randn(16, 8), 3 * torch.randn(16, 5), torch.randint(5, (16,))
    student = nn.Linear(8, 5)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    values = []
    for _ in range(21):
        loss = distillation_loss(student(images), teacher, labels)
        values.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert values[-1] < 0.8 * values[0]


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_a_bad_alpha_is_named(alpha: float) -> None:
    with pytest.raises(ValueError, match=rf"alpha must be in \[0, 1\], got {alpha}"):
        distillation_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]), alpha=alpha)
