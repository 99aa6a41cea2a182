import copy
import itertools
import math
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kd_lightning.losses import (
    CRD,
    DIST,
    DKD,
    NKD,
    OFA,
    WSLD,
    CrossEntropy,
    CurriculumTemperature,
    Loss,
    MultiLevelKD,
    Shapes,
    SoftTarget,
    soft_target,
)
from kd_lightning.losses.curriculum_temperature import Reversal, reversal

INNER: dict[str, Callable[[], Loss]] = {
    "SoftTarget": SoftTarget,
    "SoftTarget-standardize": lambda: SoftTarget(standardize=True),
    "DKD": DKD,
    "DKD-standardize": lambda: DKD(standardize=True),
    "DIST": DIST,
    "NKD": NKD,
    "OFA": OFA,
    "WSLD": WSLD,
}
every_inner = pytest.mark.parametrize("name", INNER)
LAST = 10  # the epoch from which lambda is -1


def pair(samples: int = 6, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    student, teacher = 3 * torch.randn(samples, classes).double(), 3 * torch.randn(samples, classes).double()
    return student, teacher, torch.randint(classes, (samples,))


def at(inner: Loss, temperature: float) -> Loss:
    """The loss at a fixed temperature."""
    fixed = copy.deepcopy(inner)
    fixed.temperature = temperature
    return fixed


# Lambda.


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 0.0), (1, -0.0244717), (5, -0.5), (9, -0.9755283), (10, -1.0), (11, -1.0), (240, -1.0)]
)
def test_lambda_by_hand(epoch: int, expected: float) -> None:
    # (cos(pi / 10) - 1) / 2 = (0.9510565 - 1) / 2 = -0.0244717.
    assert reversal(epoch, 10) == pytest.approx(expected, abs=1e-7)


@settings(max_examples=25, deadline=None)
@given(epoch=st.integers(0, 400), epochs=st.integers(1, 300))
def test_lambda_falls_from_0_to_minus_1(epoch: int, epochs: int) -> None:
    assert -1 <= reversal(epoch + 1, epochs) <= reversal(epoch, epochs) <= 0
    assert reversal(0, epochs) == 0
    assert reversal(epochs, epochs) == -1


def test_the_reversal_is_the_identity_with_a_gradient_times_lambda() -> None:
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = Reversal.apply(x, -0.25)
    assert y.tolist() == [1.0, -2.0]
    (y * torch.tensor([4.0, 8.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [-1.0, -2.0]


# The temperature.


@pytest.mark.parametrize(("theta", "expected"), [(0.0, 11.0), (1.0, 15.6211716), (math.log(3), 16.0), (-40.0, 1.0)])
def test_the_temperature_by_hand(theta: float, expected: float) -> None:
    # 1 + 20 sigmoid(theta); sigmoid(1) = 0.7310586, sigmoid(ln 3) = 3/4.
    loss = CurriculumTemperature(SoftTarget())
    with torch.no_grad():
        loss.theta.fill_(theta)
    assert loss.temperature().item() == pytest.approx(expected, abs=1e-5)


def test_theta_starts_at_1() -> None:
    assert CurriculumTemperature(SoftTarget()).theta.item() == 1


def test_the_range_of_the_temperature_is_chosen() -> None:
    loss = CurriculumTemperature(SoftTarget(), lowest=2.0, span=4.0)
    for theta, expected in ((-40.0, 2.0), (0.0, 4.0), (40.0, 6.0)):
        with torch.no_grad():
            loss.theta.fill_(theta)
        assert loss.temperature().item() == pytest.approx(expected, abs=1e-5)


def test_by_hand() -> None:
    # theta = ln 3, so T = 16: p_t = (3/4, 1/4), p_s = 1/2: 256 * 0.1308120.
    loss = CurriculumTemperature(SoftTarget(1.0))
    with torch.no_grad():
        loss.theta.fill_(math.log(3))
    value = loss(torch.zeros(1, 2), torch.tensor([[16 * math.log(3), 0.0]]), torch.tensor([0]), 0)
    assert value.item() == pytest.approx(256 * 0.1308120, rel=1e-5)


# Around every loss of logits with a temperature.


@every_inner
@pytest.mark.parametrize("epoch", [0, 3, LAST, 100])
def test_the_value_is_the_loss_at_the_learnt_temperature_in_every_epoch(name: str, epoch: int) -> None:
    student, teacher, label = pair()
    inner = INNER[name]()
    expected = at(inner, 1 + 20 / (1 + math.exp(-1)))(student, teacher, label)
    value = CurriculumTemperature(inner)(student, teacher, label, epoch)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)


@every_inner
def test_the_student_s_gradient_is_that_of_the_loss_and_not_reversed(name: str) -> None:
    student, teacher, label = pair()
    inner, gradients = INNER[name](), []
    fixed = at(inner, 1 + 20 / (1 + math.exp(-1)))
    for loss in (lambda s: fixed(s, teacher, label), lambda s: CurriculumTemperature(inner)(s, teacher, label, LAST)):
        leaf = student.clone().requires_grad_()
        loss(leaf).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-10)


@every_inner
@pytest.mark.parametrize("epoch", [0, 1, 5, LAST, 30])
def test_the_gradient_of_theta_is_lambda_times_the_true_one(name: str, epoch: int) -> None:
    student, teacher, label = pair()
    loss = CurriculumTemperature(INNER[name]()).double()
    loss(student, teacher, label, epoch).backward()
    assert loss.theta.grad is not None
    values, step = [], 1e-5
    for sign in (1, -1):
        with torch.no_grad():
            loss.theta.fill_(1 + sign * step)
            values.append(loss(student, teacher, label, epoch).item())
    true = (values[0] - values[1]) / (2 * step)
    assert abs(true) > 1e-4
    assert loss.theta.grad.item() == pytest.approx(reversal(epoch, LAST) * true, rel=1e-4, abs=1e-9)


@every_inner
@pytest.mark.parametrize("start", [-2.0, 0.0, 1.0])
def test_theta_moves_so_that_the_loss_grows(name: str, start: float) -> None:
    student, teacher, label = pair()
    loss = CurriculumTemperature(INNER[name]()).double()
    with torch.no_grad():
        loss.theta.fill_(start)
    optimizer = torch.optim.SGD(loss.parameters(), lr=1e-4)
    values = [loss(student, teacher, label, LAST)]
    for _ in range(5):
        optimizer.zero_grad()
        values[-1].backward()
        optimizer.step()
        values.append(loss(student, teacher, label, LAST))
    assert loss.theta.item() != start
    assert all(after > before for before, after in itertools.pairwise(values))


@every_inner
def test_theta_rests_in_epoch_0(name: str) -> None:
    student, teacher, label = pair()
    loss = CurriculumTemperature(INNER[name]())
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
    loss(student, teacher, label, 0).backward()
    optimizer.step()
    assert loss.theta.item() == 1


@every_inner
def test_it_can_be_copied_after_a_forward_and_a_backward(name: str) -> None:
    student, teacher, label = pair()
    loss = CurriculumTemperature(INNER[name]())
    own = loss.loss.temperature
    value = loss(student.requires_grad_(), teacher, label, 5)
    between = copy.deepcopy(loss)  # while the graph is alive
    value.backward()
    after = copy.deepcopy(loss)
    assert loss.loss.temperature == between.loss.temperature == after.loss.temperature == own
    assert isinstance(own, float)
    for copied in (between, after):
        assert copied.theta is not loss.theta
        torch.testing.assert_close(copied(student, teacher, label, 5), value)
    with torch.no_grad():
        loss.theta.fill_(0.0)
    assert after.theta.item() == 1


@every_inner
def test_the_loss_falls_while_the_temperature_is_learnt_against_it(name: str) -> None:
    images, teacher = torch.randn(16, 8), 3 * torch.randn(16, 5)
    label = teacher.argmax(1)  # a teacher that is wrong raises the weights of WSLD, which has no gradient of them
    student, loss = nn.Linear(8, 5), CurriculumTemperature(INNER[name]())
    optimizer = torch.optim.Adam([*student.parameters(), *loss.parameters()], lr=0.03)
    # Measured where the temperature rests, since the learnt one moves the value as well.
    fixed = CurriculumTemperature(INNER[name]())
    first = fixed(student(images), teacher, label, 0).item()
    for epoch in range(20):
        optimizer.zero_grad()
        loss(student(images), teacher, label, epoch).backward()
        optimizer.step()
    assert fixed(student(images), teacher, label, 0).item() < first
    assert loss.theta.item() != 1


@every_inner
def test_the_order_of_the_batch_does_not_matter(name: str) -> None:
    student, teacher, label = pair()
    order, loss = torch.randperm(6), CurriculumTemperature(INNER[name]())
    value = loss(student[order], teacher[order], label[order], 3)
    torch.testing.assert_close(value, loss(student, teacher, label, 3))


@every_inner
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype, autocast: bool) -> None:
    student, teacher, label = (10 * torch.randn(4, 20)).to(dtype), (10 * torch.randn(4, 20)).to(dtype), torch.arange(4)
    loss, exact = CurriculumTemperature(INNER[name]()), CurriculumTemperature(INNER[name]())
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = loss(student, teacher, label, LAST)
    value.backward()
    expected = exact(student.detach().float(), teacher.float(), label, LAST)
    expected.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected)
    assert loss.theta.grad is not None
    torch.testing.assert_close(loss.theta.grad, exact.theta.grad)
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().sum() > 0


@every_inner
@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("constant", [False, True])
def test_two_classes_and_constant_logits_stay_finite(name: str, samples: int, constant: bool) -> None:
    student, teacher, label = pair(samples, 2)
    student = (torch.full_like(student, 0.1) if constant else student).requires_grad_()
    loss = CurriculumTemperature(INNER[name]())
    value = loss(student, teacher, label, LAST)
    value.backward()
    assert value.isfinite()
    for gradient in (student.grad, loss.theta.grad):
        assert gradient is not None
        assert gradient.isfinite().all()


def test_at_equality_the_loss_is_0_and_nothing_moves() -> None:
    _, teacher, label = pair()
    loss, same = CurriculumTemperature(SoftTarget()), teacher.clone().requires_grad_()
    value = loss(same, teacher, label, LAST)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(same.grad, torch.zeros_like(teacher))
    assert loss.theta.grad is not None
    assert loss.theta.grad.item() == pytest.approx(0, abs=1e-6)


def test_gradcheck_of_the_student() -> None:
    student, teacher, label = pair(3, 4)
    loss = CurriculumTemperature(SoftTarget()).double()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, label, LAST), (student.requires_grad_(),))


# What surrounds it.


def test_the_teacher_gets_no_gradient_of_its_own_accord() -> None:
    student, teacher, label = pair()
    CurriculumTemperature(SoftTarget())(student.requires_grad_(), teacher, label, LAST).backward()
    assert (student.grad is None, teacher.grad is None) == (False, True)


def test_theta_is_a_parameter_and_in_the_checkpoint() -> None:
    loss = CurriculumTemperature(DKD())
    assert [name for name, _ in loss.named_parameters()] == ["theta"]
    with torch.no_grad():
        loss.theta.fill_(-0.5)
    resumed = CurriculumTemperature(DKD())
    resumed.load_state_dict(loss.state_dict())
    assert resumed.theta.item() == -0.5


def test_the_epoch_is_what_it_needs() -> None:
    assert CurriculumTemperature(SoftTarget()).needs == {"epoch", "epochs"}
    with pytest.raises(TypeError, match="epoch"):
        CurriculumTemperature(SoftTarget())(*pair())


def test_the_epochs_until_lambda_is_minus_1_are_chosen() -> None:
    student, teacher, label = pair()
    gradients = []
    for epochs in (10, 2):
        loss = CurriculumTemperature(SoftTarget(), epochs=epochs)
        loss(student, teacher, label, 1).backward()
        assert loss.theta.grad is not None
        gradients.append(loss.theta.grad.item())
    # Lambda in epoch 1 is -0.0244717 of 10 epochs, -0.5 of 2.
    assert gradients[0] / gradients[1] == pytest.approx(0.0489435, rel=1e-5)


def test_lambda_may_take_a_share_of_the_training() -> None:
    student, teacher, label = pair()
    gradients = []
    for loss in (CurriculumTemperature(SoftTarget(), epochs=0.041667), CurriculumTemperature(SoftTarget(), epochs=10)):
        for epochs in (240, 480):
            loss.theta.grad = None
            loss(student, teacher, label, 5, epochs).backward()
            assert loss.theta.grad is not None
            gradients.append(loss.theta.grad.item())
    assert gradients[0] == gradients[2] == gradients[3]
    # Lambda in epoch 5 is -0.5 of 10 epochs, (cos(pi / 4) - 1) / 2 of 20.
    assert gradients[1] / gradients[0] == pytest.approx(1 - math.sqrt(0.5), rel=1e-5)
    with pytest.raises(ValueError, match=r"0\.25 is a share of the training, which needs trainer\.max_epochs"):
        CurriculumTemperature(SoftTarget(), epochs=0.25)(student, teacher, label, 5)


def test_its_own_temperature_is_given_back_after_an_error() -> None:
    loss = CurriculumTemperature(SoftTarget(3.0))
    with pytest.raises(ValueError, match="logits of one shape"):
        loss(torch.zeros(4, 10), torch.zeros(4, 5), torch.zeros(4), 0)
    assert loss.loss.temperature == 3.0
    copy.deepcopy(loss)


class Adapted(Loss):
    """A loss with an adapter that asks for the epoch, as somebody outside the package would write one."""

    needs: ClassVar[frozenset[str]] = frozenset({"epoch"})
    temperature: float | Tensor = 4.0

    def build(self, student: Shapes, teacher: Shapes) -> None:
        self.adapter = nn.Linear(student[0][1], teacher[0][1])

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor, epoch: int) -> Tensor:
        return (epoch + 1) * soft_target(self.adapter(student), teacher, self.temperature)  # type: ignore[arg-type]


class Timed(Loss):
    """Says in which part of the training it is."""

    needs: ClassVar[frozenset[str]] = frozenset({"epoch", "epochs"})
    temperature: float | Tensor = 4.0

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor, epoch: int, epochs: int) -> Tensor:
        return student.sum() * 0 + epoch / epochs


def test_the_length_of_the_training_is_handed_on() -> None:
    assert CurriculumTemperature(Timed())(*pair(), epoch=3, epochs=12).item() == 0.25


def test_shapes_and_the_epoch_are_handed_on() -> None:
    loss = CurriculumTemperature(Adapted())
    loss.build([(1, 4)], [(1, 6)])
    assert {name for name, _ in loss.named_parameters()} == {"theta", "loss.adapter.weight", "loss.adapter.bias"}
    student, teacher, label = torch.randn(3, 4), torch.randn(3, 6), torch.zeros(3)
    values = [loss(student, teacher, label, epoch) for epoch in (0, 2)]
    torch.testing.assert_close(values[1], 3 * values[0])
    values[1].backward()
    for parameter in loss.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "inner", [CrossEntropy, MultiLevelKD, lambda: CurriculumTemperature(SoftTarget())], ids=["CE", "MultiLevel", "own"]
)
def test_a_loss_without_a_single_temperature_is_refused(inner: Callable[[], Loss]) -> None:
    loss = inner()
    message = f"^loss must have a temperature, as SoftTarget has, got {type(loss).__name__}$"
    with pytest.raises(ValueError, match=message):
        CurriculumTemperature(loss)


class NeedsMore(SoftTarget):
    needs = frozenset({"index"})


def test_a_loss_that_needs_more_is_refused() -> None:
    message = "^loss must need nothing but logits, targets and the epoch, got one that needs .*index"
    with pytest.raises(ValueError, match=message):
        CurriculumTemperature(NeedsMore())


def test_a_loss_of_features_is_refused() -> None:
    with pytest.raises(ValueError, match="^loss must be of logits, got CRD of 'embedding'$"):
        CurriculumTemperature(CRD())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs must be >= 1, got 0"),
        ({"epochs": 9.5}, r"epochs must be an integer of epochs, or a share of the training in \(0, 1\], got 9\.5"),
        ({"lowest": 0.0}, "lowest and span must be > 0, got 0.0 and 20.0"),
        ({"span": -1.0}, "lowest and span must be > 0, got 1.0 and -1.0"),
        ({"span": float("nan")}, "lowest and span must be > 0, got 1.0 and nan"),
    ],
)
def test_a_bad_argument_is_named(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        CurriculumTemperature(SoftTarget(), **arguments)
