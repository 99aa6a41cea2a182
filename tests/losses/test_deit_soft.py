import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses import ReferenceSoftTarget, SoftTarget

LN3 = math.log(3)
NO_TARGET = torch.zeros(0, dtype=torch.int64)


def pair(samples: int = 6, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(3 * torch.randn(samples, classes, generator=generator).double() for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.0654060), (2.0, 0.2616240)])
def test_by_hand(temperature: float, expected: float) -> None:
    # p_t = (3/4, 1/4), p_s = (1/2, 1/2): KL = 0.75 ln 1.5 - 0.25 ln 2 = 0.1308120, times T^2, over 2 classes.
    teacher = torch.tensor([[temperature * LN3, 0.0]])
    loss = ReferenceSoftTarget(temperature)(torch.zeros(1, 2), teacher, NO_TARGET)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_batch_and_classes_divide() -> None:
    # The second sample agrees and a third class has no mass, so 0.1308120 is divided by 2 samples x 3 classes.
    student = torch.tensor([[0.0, 0.0, -100.0], [1.0, 1.0, 1.0]])
    teacher = torch.tensor([[LN3, 0.0, -100.0], [1.0, 1.0, 1.0]])
    assert ReferenceSoftTarget()(student, teacher, NO_TARGET).item() == pytest.approx(0.0218020, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_against_the_definition_of_the_reference_code(temperature: float) -> None:
    student, teacher = pair()
    log_s, log_t = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    expected = (log_t.exp() * (log_t - log_s)).sum() * temperature**2 / 30
    torch.testing.assert_close(ReferenceSoftTarget(temperature)(student, teacher, NO_TARGET), expected)


def test_with_1000_classes_it_is_1000_times_smaller_than_soft_targets() -> None:
    student, teacher = pair(classes=1000)
    ratio = SoftTarget(3.0)(student, teacher, NO_TARGET) / ReferenceSoftTarget(3.0)(student, teacher, NO_TARGET)
    assert ratio.item() == pytest.approx(1000)


def test_it_is_least_at_equality() -> None:
    student, teacher = pair()
    assert ReferenceSoftTarget()(teacher, teacher, NO_TARGET).item() == pytest.approx(0, abs=1e-12)
    assert ReferenceSoftTarget()(student, teacher, NO_TARGET).item() > 0.01


def test_half_precision_is_raised() -> None:
    student, teacher = (logits.half() for logits in pair())
    low = ReferenceSoftTarget()(student, teacher, NO_TARGET)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, ReferenceSoftTarget()(student.float(), teacher.float(), NO_TARGET))


def test_twenty_steps_lower_it() -> None:
    student, teacher = pair()
    student.requires_grad_()
    optimizer = torch.optim.SGD([student], lr=5.0)
    values = []
    for _ in range(21):
        loss = ReferenceSoftTarget(3.0)(student, teacher, NO_TARGET)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.5 * values[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReferenceSoftTarget(0.0), "temperature must be > 0, got 0.0"),
        (lambda: ReferenceSoftTarget()(torch.zeros(2, 3), torch.zeros(2, 4), NO_TARGET), r"\(2, 3\) and \(2, 4\)"),
    ],
)
def test_what_is_wrong_is_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
