from typing import Any

import torch
from torch import Tensor

from kd_lightning.models.evaluated import below, evaluated_student

STUDENT, AVERAGE = {"stem.weight": torch.ones(2)}, {"stem.weight": torch.zeros(2)}
CHECKPOINT: dict[str, Any] = {"state_dict": {"student.stem.weight": torch.ones(2), "criteria.a.w": torch.ones(1)}}
AVERAGED = CHECKPOINT | {"ema": {"module.stem.weight": torch.zeros(2), "steps": torch.tensor(3)}}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_it_is_the_average_unless_that_is_not_evaluated() -> None:
    assert same(evaluated_student(CHECKPOINT), STUDENT)
    assert same(evaluated_student(AVERAGED), AVERAGE)
    assert same(evaluated_student(AVERAGED | {"ema_evaluated": True}), AVERAGE)
    assert same(evaluated_student(AVERAGED | {"ema_evaluated": False}), STUDENT)


def test_an_average_of_somebody_elses_is_none() -> None:
    assert same(evaluated_student(CHECKPOINT | {"ema": {"decay": 0.9}}), STUDENT)
    assert evaluated_student({}) == {}


def test_entries_are_below_a_whole_name() -> None:
    assert below({"a.b": 1, "ab.c": 2, "a": 3, "a.b.c": 4}, "a") == {"b": 1, "b.c": 4}
    assert below(None, "a") == {}
