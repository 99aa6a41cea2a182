import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.batch import Batch
from kd_lightning.models import MovingAverageTeacher, Views
from kd_lightning.models.moving_average import ramped

VIEWS = Views((3, 4, 4))


class Net(nn.Module):
    """With BatchNorm and dropout, and one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())
        self.fc = nn.Linear(16, 16)
        self.again = nn.Linear(16, 16)
        self.again.weight = self.fc.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.again(self.fc(self.body(x)))
        return logits


def batch() -> Batch:
    return Batch({"default": torch.randn(6, 3, 4, 4), "weak": torch.ones(6, 3, 4, 4)}, torch.zeros(6).long())


def ready(student: nn.Module, taps: tuple[str, ...] = (), **given: Any) -> MovingAverageTeacher:
    teacher = MovingAverageTeacher(**given)
    teacher.follow(student)
    teacher.setup(16, VIEWS, taps)
    return teacher


def moved(student: nn.Module) -> None:
    """As a step of training moves it."""
    student.train()(torch.randn(8, 3, 4, 4))
    for parameter in student.parameters():
        parameter.data += torch.randn_like(parameter)


def test_the_ramp() -> None:
    assert ramped(0.9, 0, 10) == pytest.approx(0.9)
    assert ramped(0.9, 5, 10) == pytest.approx(0.95)
    assert ramped(0.9, 10, 10) == pytest.approx(1.0)
    assert ramped(0.9, 2, 10) == pytest.approx(1 - 0.1 * (math.cos(math.pi / 5) + 1) / 2)


@pytest.mark.parametrize("ramp", ["constant", "cosine"])
def test_the_average_of_weights_and_statistics_by_hand(ramp: Any) -> None:
    student = Net()
    teacher = ready(student, momentum=0.8, ramp=ramp)
    expected = {key: value.double() for key, value in student.state_dict().items()}
    for step in range(4):
        moved(student)
        teacher.advance(student, step, 6)
        m = 0.8 if ramp == "constant" else 1 - 0.2 * (math.cos(math.pi * step / 6) + 1) / 2
        for key, value in student.state_dict().items():
            counts = key.endswith("num_batches_tracked")
            expected[key] = value.double() if counts else m * expected[key] + (1 - m) * value.double()
    state = teacher.state()
    assert state["body.1.num_batches_tracked"] == 4
    for key, value in state.items():
        torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-6, msg=key)


def test_it_starts_as_the_student_and_is_none_of_it() -> None:
    student = Net()
    teacher, given = ready(student, ("fc",)), batch()
    torch.testing.assert_close(teacher(given).logits, student.eval()(given.image))
    torch.testing.assert_close(teacher(given, "weak").logits, student(given.images["weak"]))
    torch.testing.assert_close(teacher(given).taps["fc"], student.fc(student.body(given.image)))
    before = teacher(given).logits
    moved(student)
    assert torch.equal(teacher(given).logits, before)


def test_it_follows_anew_when_a_training_starts() -> None:
    student = Net()
    teacher = ready(student)
    moved(student)
    teacher.follow(student)
    torch.testing.assert_close(teacher.state(), dict(student.state_dict()))


def test_it_answers_in_eval_without_gradient_and_does_not_change_by_it() -> None:
    teacher = ready(Net(), ("body",))
    before = {key: value.clone() for key, value in teacher.state().items()}
    given = batch()
    outputs = teacher(given)
    tap = outputs.taps["body"]
    assert isinstance(tap, Tensor)
    assert not outputs.logits.requires_grad
    assert not tap.requires_grad
    assert torch.equal(outputs.logits, teacher(given).logits)
    torch.testing.assert_close(teacher.state(), before)


def test_with_batch_statistics_it_answers_as_a_student_in_training_does_but_for_dropout() -> None:
    student = Net()
    teacher, given = ready(student, momentum=0.5, batch_statistics=True), batch()
    before = {key: value.clone() for key, value in teacher.state().items()}
    asked = teacher(given).logits
    torch.testing.assert_close(teacher.state(), before)
    measured = teacher.unlabelled(given).logits
    student.train().body[2].eval()
    torch.testing.assert_close(asked, student(given.image))
    assert not torch.allclose(asked, measured)
    student.load_state_dict(before)
    torch.testing.assert_close(measured, student.eval()(given.image))


def test_a_state_comes_back() -> None:
    student = Net()
    teacher = ready(student, momentum=0.5)
    moved(student)
    teacher.advance(student, 0, 9)
    kept = {key: value.clone() for key, value in teacher.state().items()}
    other = ready(Net())
    other.restore(kept)
    torch.testing.assert_close(other.state(), kept, rtol=0, atol=0)


def test_a_run_in_float64_is_followed() -> None:
    student = Net()
    teacher = ready(student, momentum=0.5)
    student.double()
    teacher.advance(student, 0, 9)
    assert (
        teacher(Batch({"default": torch.randn(2, 3, 4, 4).double()}, torch.zeros(2).long())).logits.dtype
        == torch.float64
    )


def test_half_precision_would_not_move_and_is_refused() -> None:
    student = Net()
    teacher = ready(student)
    with pytest.raises(ValueError, match=r"weights in torch\.bfloat16 are too coarse for a moving average"):
        teacher.advance(student.bfloat16(), 0, 9)


@pytest.mark.parametrize("steps", [math.inf, 0])
def test_a_ramp_needs_an_end(steps: float) -> None:
    student = Net()
    with pytest.raises(ValueError, match=r"ramp cosine needs the length of training: give trainer\.max_epochs"):
        ready(student, ramp="cosine").advance(student, 0, steps)
    ready(student).advance(student, 0, steps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1\.0"),
        ({"momentum": -0.1}, r"momentum must be in \[0, 1\), got -0\.1"),
        ({"ramp": "linear"}, "ramp must be constant or cosine, got 'linear'"),
    ],
)
def test_faults(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MovingAverageTeacher(**options)


def test_a_checkpoint_that_does_not_fit() -> None:
    teacher = ready(Net())
    with pytest.raises(ValueError, match="the checkpoint holds no moving average of the student"):
        teacher.restore(None)
    with pytest.raises(ValueError, match="the checkpoint's teacher"):
        teacher.restore({"fc.weight": torch.zeros(2, 2)})


def test_who_does_not_tell_it_of_the_student_is_told() -> None:
    with pytest.raises(ValueError, match="a MovingAverageTeacher must follow the student"):
        MovingAverageTeacher().setup(16, VIEWS, [])
