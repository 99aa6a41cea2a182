"""How fast a training is, and how long it will still take."""

import math

import pytest
import torch

from kd_lightning.batch import Batch
from kd_lightning.callbacks.pace import Speed, batches_in, images_in, time_left


@pytest.mark.parametrize(
    ("per_epoch", "max_epochs", "max_steps", "per_step", "expected"),
    [
        (10, 60, -1, 1, 600),
        (10, 60, 50, 1, 50),
        (10, 60, 50, 4, 200),
        (10, 2, 50, 1, 20),
        (10, -1, 50, 1, 50),
        (10, None, 50, 1, 50),
        (10, -1, -1, 1, math.inf),
        (math.inf, 3, -1, 1, math.inf),
        (math.inf, 3, 40, 1, 40),
    ],
)
def test_a_training_ends_with_its_epochs_or_its_steps(
    per_epoch: float, max_epochs: int | None, max_steps: int, per_step: int, expected: float
) -> None:
    assert batches_in(per_epoch, max_epochs, max_steps, per_step) == expected


@pytest.mark.parametrize(
    ("elapsed", "done", "still", "expected"),
    [
        (10.0, 5, 30, "0:01:00"),
        (3600.0, 10, 1000, "4 days, 4:00:00"),
        (10.0, 0, 30, "-:--:--"),
        (10.0, 5, math.inf, "-:--:--"),
        (10.0, 5, 0, "0:00:00"),
        (10.0, 5, -3, "0:00:00"),
    ],
)
def test_what_is_left_takes_as_long_as_what_was_done(elapsed: float, done: int, still: float, expected: str) -> None:
    assert time_left(elapsed, done, still) == expected


def test_images_are_those_of_the_batch_whatever_it_is() -> None:
    image, target = torch.zeros(7, 1, 2, 2), torch.zeros(7, dtype=torch.int64)
    assert images_in(Batch({"default": image}, target)) == 7
    assert images_in(Batch({}, target, target, target)) == 7
    assert images_in((image, target)) == 7
    assert images_in({"pixels": image}) == 7
    assert images_in(None) == 0


def test_a_steady_speed_is_shown_as_it_is() -> None:
    speed = Speed()
    assert str(speed) == ""
    speed.add(128, 0.0)  # by a coarse clock
    assert str(speed) == ""
    speed = Speed()
    for _ in range(1000):
        speed.add(128, 0.05)
    assert str(speed) == "2,560 images/s"


def test_a_change_of_speed_is_seen_after_some_ten_seconds() -> None:
    speed = Speed()
    for _ in range(600):
        speed.add(100, 0.1)
    speed.add(200, 0.1)
    assert 1000 < speed.count / speed.seconds < 1020
    for _ in range(100):
        speed.add(200, 0.1)
    assert speed.count / speed.seconds == pytest.approx(2000 - 1000 * math.exp(-1), rel=0.01)
