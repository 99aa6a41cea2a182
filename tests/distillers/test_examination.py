from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from torch import Tensor

from kd_lightning.batch import Batch
from kd_lightning.distillers.examination import examine, judge
from kd_lightning.models import Outputs, TapPlan, Teacher, TeacherCheck, Views


class Reader(Teacher):
    """Reads its decision off the first pixel."""

    def __init__(self, check: TeacherCheck | Literal[False], expected_top1: float | None = None) -> None:
        self.check, self.expected_top1, self.asked = check, expected_top1, 0

    def setup(self, num_classes: int, views: Views, taps: Sequence[str]) -> None:
        pass

    def to(self, device: torch.device) -> None:
        pass

    def plan(self) -> TapPlan:
        return TapPlan({}, {"logits": (2, 10)})

    def __call__(self, batch: Batch, view: str = "default") -> Outputs:
        self.asked += 1
        return Outputs(torch.nn.functional.one_hot(batch.image[:, 0, 0, 0].long(), 10).float(), {})


def alone(value: Tensor) -> Tensor:
    return value


def same(batch: object) -> object:
    return batch


def batches(decisions: list[list[int]], labels: list[list[int]]) -> list[tuple[Tensor, Tensor]]:
    return [
        (torch.tensor(d, dtype=torch.float32).view(-1, 1, 1, 1), torch.tensor(y))
        for d, y in zip(decisions, labels, strict=True)
    ]


LOADER = batches([[1, 2, 3], [4, 5, 6], [7, 8, 9]], [[1, 2, 0], [4, 0, 6], [7, 8, 9]])


@pytest.mark.parametrize(
    ("images", "top1", "seen", "asked"),
    [(2, 2 / 2, 2, 1), (3, 2 / 3, 3, 1), (4, 3 / 4, 4, 2), (5, 3 / 5, 5, 2), (9, 7 / 9, 9, 3), (2000, 7 / 9, 9, 3)],
)
def test_top1_is_that_of_the_first_images(images: int, top1: float, seen: int, asked: int) -> None:
    teacher = Reader(TeacherCheck(images=images))
    assert examine(teacher, LOADER, same, alone) == (pytest.approx(top1), seen)
    assert teacher.asked == asked


def test_mixed_targets_count_by_their_largest_class() -> None:
    images, _ = LOADER[0]
    mixed = torch.zeros(3, 10)
    mixed[0, 1], mixed[0, 5], mixed[1, 2], mixed[1, 3], mixed[2, 3] = 0.6, 0.4, 0.3, 0.7, 1.0
    assert examine(Reader(TeacherCheck()), [(images, mixed)], same, alone) == (pytest.approx(2 / 3), 3)


def test_each_rank_takes_its_part_of_the_images() -> None:
    teacher = Reader(TeacherCheck(images=6))
    assert examine(teacher, LOADER, same, lambda value: 2 * value) == (pytest.approx(2 / 3), 6)
    assert teacher.asked == 1


def test_an_empty_loader_shows_nothing() -> None:
    assert examine(Reader(TeacherCheck()), [], same, alone) == (0.0, 0)


def test_batches_are_moved_before_the_teacher_sees_them() -> None:
    moved = []
    examine(Reader(TeacherCheck(images=4)), LOADER, lambda batch: moved.append(batch) or batch, alone)
    assert len(moved) == 2


def test_without_a_check_there_is_no_examination() -> None:
    with pytest.raises(ValueError, match="check is false"):
        examine(Reader(False), LOADER, same, alone)


@pytest.mark.parametrize(
    ("above_chance", "classes", "threshold"),
    [(2.0, 10, 0.2), (2.0, 100, 0.02), (2.0, 2, 0.75), (9.0, 10, 0.55), (0.0, 10, 0.0)],
)
def test_threshold_of_the_check(above_chance: float, classes: int, threshold: float) -> None:
    teacher = Reader(TeacherCheck(above_chance=above_chance))
    judge(teacher, threshold, 100, classes)
    if threshold:
        with pytest.raises(ValueError, match=f"top-1 is .* near chance .1/{classes}.*at least {threshold:.4f}"):
            judge(teacher, threshold - 1e-3, 100, classes)


def test_the_message_says_what_to_look_at() -> None:
    with pytest.raises(ValueError, match=r"0\.1100 on 450 images") as caught:
        judge(Reader(TeacherCheck()), 0.11, 450, 10)
    assert "weights, normalisation and class order" in str(caught.value)
    assert "check: false" in str(caught.value)


@pytest.mark.parametrize("top1", [0.821, 0.979])
def test_what_is_expected_may_be_missed_by_the_tolerance(top1: float) -> None:
    # 0.02 + 2 sqrt(0.9 x 0.1 / 100) = 0.08
    judge(Reader(TeacherCheck(), expected_top1=0.9), top1, 100, 10)


@pytest.mark.parametrize("top1", [0.819, 0.981])
def test_a_teacher_that_is_not_what_is_expected_is_refused(top1: float) -> None:
    with pytest.raises(ValueError, match=rf"top-1 is {top1:.4f} .* expected_top1 is 0\.9 \(tolerance 0\.0800\)"):
        judge(Reader(TeacherCheck(), expected_top1=0.9), top1, 100, 10)


def test_the_tolerance_shrinks_with_the_number_of_images() -> None:
    judge(Reader(TeacherCheck(), expected_top1=0.9), 0.975, 100, 10)
    with pytest.raises(ValueError, match="expected_top1"):
        judge(Reader(TeacherCheck(), expected_top1=0.9), 0.975, 10_000, 10)


def test_without_a_check_everyone_passes() -> None:
    judge(Reader(False, expected_top1=0.9), 0.0, 100, 10)
