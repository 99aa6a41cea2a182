import pytest
import torch
from torch import Tensor

from kd_lightning.batch import Batch
from kd_lightning.distillers.evaluating import Answers
from kd_lightning.distillers.notable_images import NotableImages, visible


def logits(*decisions: int, sure: float = 5.0) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(decisions), 3).float() * sure


def answers(target: list[int], student: Tensor, teacher: Tensor | None, index: list[int] | None = None) -> Answers:
    rows = None if index is None else torch.tensor(index)
    batch = Batch({"default": torch.zeros(len(target), 1, 2, 2)}, torch.tensor(target), rows)
    return Answers(batch, student, {}, teacher)


def test_an_image_is_seen_as_before_its_normalisation() -> None:
    pixels = torch.randint(256, (3, 4, 4), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    normalised = torch.stack([(pixels[c] / 255 - mean[c]) / std[c] for c in range(3)])
    assert torch.equal(visible(normalised, mean, std), pixels)
    assert torch.equal(visible(pixels / 255, None, None), pixels)


def test_missed_are_those_that_the_teacher_gets_right() -> None:
    notable = NotableImages(None, None)
    notable.note(answers([0, 1, 2], logits(0, 2, 0), logits(0, 1, 0), index=[7, 5, 3]))
    (missed,) = notable.missed
    assert (missed.row, missed.target) == (5, 1)
    assert missed.student.tolist() == [0, 0, 5]
    assert missed.teacher is not None
    assert missed.teacher.tolist() == [0, 5, 0]


def test_without_a_teacher_all_that_the_student_misses_count_by_their_position() -> None:
    notable = NotableImages(None, None, missed=2)
    notable.note(answers([0, 1], logits(0, 2), None))
    notable.note(answers([0, 1, 2], logits(1, 1, 1), None))
    assert [each.row for each in notable.missed] == [1, 2]
    assert notable.missed[0].teacher is None


def test_the_least_sure_of_all_batches_come_first() -> None:
    notable = NotableImages(None, None, unsure=2)
    sure = [3.0, 0.5, 2.0, 1.0]
    for row, each in enumerate(sure):
        notable.note(answers([0], logits(0), logits(0, sure=each), index=[row]))
    assert [each.row for each in notable.unsure] == [1, 3]


def test_of_two_that_are_equally_sure_the_first_one_comes_first() -> None:
    notable = NotableImages(None, None, unsure=1)
    for row in (4, 2, 9):
        notable.note(answers([0], logits(0), None, index=[row]))
    assert [each.row for each in notable.unsure] == [2]


@pytest.mark.parametrize("kind", ["missed", "unsure"])
def test_none_are_kept_where_none_are_wanted(kind: str) -> None:
    notable = NotableImages(None, None, **{kind: 0})
    notable.note(answers([0, 1], logits(1, 1), None))
    assert getattr(notable, kind) == []
