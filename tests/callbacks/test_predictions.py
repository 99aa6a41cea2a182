"""Predictions: one CSV file in the order of the index."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kd_lightning.callbacks import Predictions
from kd_lightning.run_folder import RunFolder


def trainer_of(rank: int = 0, world: int = 1, classes: list[str] | None = None) -> Any:
    strategy = SimpleNamespace(barrier=lambda: None)
    data = SimpleNamespace(classes=classes)
    return SimpleNamespace(
        global_rank=rank, world_size=world, is_global_zero=rank == 0, strategy=strategy, datamodule=data
    )


def predicted(callback: Predictions, trainer: Any, index: list[int] | None, values: list[list[float]]) -> None:
    outputs = (None if index is None else torch.tensor(index), torch.tensor(values))
    callback.on_predict_batch_end(trainer, None, outputs, None, 0)  # type: ignore[arg-type]


def table(folder: Path) -> list[list[str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_rows_in_the_order_of_the_index(tmp_path: Path) -> None:
    callback, trainer = Predictions(RunFolder(tmp_path / "run")), trainer_of(classes=["cat", "dog"])
    predicted(callback, trainer, [12, 3], [[0.25, 0.75], [0.5, 0.5]])
    predicted(callback, trainer, [4], [[1.0, 0.0]])
    callback.on_predict_end(trainer, None)  # type: ignore[arg-type]
    assert table(tmp_path / "run") == [
        ["index", "class", "p(cat)", "p(dog)"],
        ["3", "cat", "0.5", "0.5"],
        ["4", "cat", "1.0", "0.0"],
        ["12", "dog", "0.25", "0.75"],
    ]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["predictions.csv"]


def test_without_an_index_the_position_counts(tmp_path: Path) -> None:
    callback, trainer = Predictions(RunFolder(tmp_path)), trainer_of()
    predicted(callback, trainer, None, [[0.25, 0.75], [0.75, 0.25]])
    predicted(callback, trainer, None, [[0.5, 0.5]])
    callback.on_predict_end(trainer, None)  # type: ignore[arg-type]
    assert [row[:2] for row in table(tmp_path)] == [["index", "class"], ["0", "1"], ["1", "0"], ["2", "0"]]


def test_the_first_rank_merges_the_parts(tmp_path: Path) -> None:
    for rank, index in ((1, [1, 3]), (0, [0, 2])):
        callback, trainer = Predictions(RunFolder(tmp_path)), trainer_of(rank, 2)
        predicted(callback, trainer, index, [[1.0 - rank, float(rank)]] * 2)
        callback.on_predict_end(trainer, None)  # type: ignore[arg-type]
    assert [row[:2] for row in table(tmp_path)[1:]] == [["0", "0"], ["1", "1"], ["2", "0"], ["3", "1"]]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]


def test_an_index_too_few_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        predicted(Predictions(RunFolder(tmp_path)), trainer_of(), [1], [[1.0], [1.0]])
