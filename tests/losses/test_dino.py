import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_lightning.losses import DINO
from kd_lightning.losses.dino import dino

NONE = torch.zeros(0)


def views(count: int, samples: int = 4, outputs: int = 6) -> list[Tensor]:
    return [torch.randn(samples, outputs) for _ in range(count)]


def test_a_value_by_hand() -> None:
    # One sample, two outputs, one global view, one other view: softmax((t - c) / T_t) is (0.8, 0.2).
    teacher = [torch.tensor([[0.5 * math.log(4) + 1.0, 2.0]])]
    student = [torch.tensor([[9.0, -9.0]]), torch.tensor([[0.0, 0.1 * math.log(3)]])]
    value = dino(student, teacher, torch.tensor([1.0, 2.0]), 0.1, 0.5)
    assert value.item() == pytest.approx(-0.8 * math.log(0.25) - 0.2 * math.log(0.75), rel=1e-5)


def test_pairs_are_of_different_views() -> None:
    student, teacher, centre = views(4), views(2), torch.randn(6)
    expected = []
    for which, other in [(0, 1), (0, 2), (0, 3), (1, 0), (1, 2), (1, 3)]:
        p = torch.softmax((teacher[which] - centre) / 0.04, 1)
        expected.append(-(p * torch.log_softmax(student[other] / 0.1, 1)).sum(1).mean())
    torch.testing.assert_close(dino(student, teacher, centre), torch.stack(expected).mean())


def softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    e = np.exp(x - x.max())
    return np.asarray(e / e.sum(), dtype=np.float64)


def test_three_steps_equal_the_papers_algorithm_sample_by_sample() -> None:
    loss, centre = DINO(momentum=0.9, teacher_temperature=0.07, warmup_temperature=0.04, warmup_epochs=2), np.zeros(6)
    for epoch, temperature in enumerate([0.04, 0.055, 0.07]):
        student, teacher = views(5), views(2)
        total, terms = 0.0, 0
        for t, its in enumerate(teacher):
            for s, mine in enumerate(student):
                if s == t:
                    continue
                terms += 1
                for row in range(4):
                    p = softmax((its[row].double().numpy() - centre) / temperature)
                    total -= float((p * np.log(softmax(mine[row].double().numpy() / 0.1))).sum()) / 4
        assert terms == 8
        assert loss(student, teacher, NONE, epoch).item() == pytest.approx(total / terms, rel=1e-4)
        rows = [row.double().numpy() for view in teacher for row in view]
        centre = 0.9 * centre + 0.1 * sum(rows) / len(rows)
    assert loss.centre is not None
    np.testing.assert_allclose(loss.centre.numpy(), centre, rtol=1e-5, atol=1e-6)


def test_the_centre_moves_after_the_loss_and_in_training_only() -> None:
    loss = DINO(momentum=0.8)
    student, teacher = views(3), views(2)
    torch.testing.assert_close(loss(student, teacher, NONE, 0), dino(student, teacher, torch.zeros(6)))
    first = 0.2 * torch.cat(teacher).mean(0)
    assert loss.centre is not None
    torch.testing.assert_close(loss.centre, first)
    torch.testing.assert_close(loss(student, teacher, NONE, 0), dino(student, teacher, first))
    torch.testing.assert_close(loss.centre, 0.8 * first + 0.2 * torch.cat(teacher).mean(0))
    before = loss.centre
    loss.eval()(student, views(2), NONE, 0)
    assert loss.centre is before


def test_an_output_that_always_wins_is_centred_away() -> None:
    loss = DINO(momentum=0.0)
    always = torch.tensor([5.0, 0.0, 0.0])
    teacher = [torch.randn(50, 3) * 0.1 + always for _ in range(2)]
    loss(teacher, teacher, NONE, 0)
    assert loss.centre is not None
    torch.testing.assert_close(loss.centre, always, rtol=0, atol=0.1)


def test_the_warm_up() -> None:
    loss = DINO(teacher_temperature=0.07, warmup_temperature=0.04, warmup_epochs=30)
    assert [loss.temperature(epoch) for epoch in (0, 10, 30, 99)] == pytest.approx([0.04, 0.05, 0.07, 0.07])
    assert DINO(teacher_temperature=0.07).temperature(0) == 0.07
    student, teacher = views(2), views(2)
    torch.testing.assert_close(loss(student, teacher, NONE, 10), dino(student, teacher, torch.zeros(6), 0.1, 0.05))


def test_the_warm_up_over_a_share_of_the_training() -> None:
    loss = DINO(teacher_temperature=0.07, warmup_temperature=0.04, warmup_epochs=0.3)
    assert [loss.temperature(epoch, 100) for epoch in (0, 10, 30, 99)] == pytest.approx([0.04, 0.05, 0.07, 0.07])
    assert [loss.temperature(epoch, 200) for epoch in (0, 20, 60)] == pytest.approx([0.04, 0.05, 0.07])
    student, teacher = views(2), views(2)
    torch.testing.assert_close(loss(student, teacher, NONE, 10, 100), dino(student, teacher, torch.zeros(6), 0.1, 0.05))
    with pytest.raises(ValueError, match=r"0\.3 is a share of the training, which needs trainer\.max_epochs"):
        loss(student, teacher, NONE, 10)


def test_the_centre_is_extra_state_and_no_buffer() -> None:
    loss, other = DINO(), DINO()
    assert loss.get_extra_state() == {}
    loss(views(2), views(2), NONE, 0)
    assert not list(loss.buffers())
    other.load_state_dict(loss.state_dict())
    assert other.centre is not None
    assert loss.centre is not None
    assert torch.equal(other.centre, loss.centre)


def test_the_gradient_is_the_students_alone_and_twenty_steps_lower_it() -> None:
    student, teacher = [view.requires_grad_() for view in views(4)], [view.requires_grad_() for view in views(2)]
    loss = DINO().eval()
    optimizer = torch.optim.SGD(student, 0.1)
    first = loss(student, teacher, NONE, 0).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss(student, teacher, NONE, 0).backward()
        optimizer.step()
    assert all(view.grad is None for view in teacher)
    assert loss(student, teacher, NONE, 0).item() < 0.9 * first


def test_half_precision_is_computed_in_float32() -> None:
    student, teacher = [view.bfloat16() for view in views(3)], [view.bfloat16() for view in views(2)]
    loss, other = DINO(), DINO()
    value = loss(student, teacher, NONE, 0)
    assert torch.equal(value, other([view.float() for view in student], [view.float() for view in teacher], NONE, 0))
    assert loss.centre is not None
    assert loss.centre.dtype == torch.float32


def test_one_global_view() -> None:
    student, teacher = views(3), views(1)
    torch.testing.assert_close(DINO()(student, teacher[0], NONE, 0), dino(student, teacher, torch.zeros(6)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student_temperature": 0.0}, r"temperature must be > 0, got 0\.0"),
        ({"teacher_temperature": -1.0}, r"temperature must be > 0, got -1\.0"),
        ({"warmup_temperature": 0.0}, r"temperature must be > 0, got 0\.0"),
        ({"warmup_epochs": -1}, "warmup_epochs must be >= 0, got -1"),
        ({"warmup_epochs": 1.5}, r"warmup_epochs must be an integer of epochs, or a share .* in \[0, 1\], got 1\.5"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1\.0"),
    ],
)
def test_a_bad_argument_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DINO(**options)


def test_too_few_views() -> None:
    with pytest.raises(ValueError, match="DINO needs several views: list them in the term's views"):
        DINO()(torch.zeros(2, 3), views(2), NONE, 0)
    with pytest.raises(ValueError, match="must look at the teacher's 3 views and at 2 at least, got 2"):
        DINO()(views(2), views(3), NONE, 0)
    with pytest.raises(ValueError, match="must look at the teacher's 1 views and at 2 at least, got 1"):
        DINO()(views(1), views(1), NONE, 0)
