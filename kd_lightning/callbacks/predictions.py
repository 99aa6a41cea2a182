"""Predictions: class probabilities of each sample in one CSV file."""

import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from kd_lightning.distillers.data_facts import class_names
from kd_lightning.run_folder import RunFolder


class Predictions(pl.Callback):
    """Writes ``predictions.csv``: the sample's index, the predicted class, the probability of each class.

    Each rank writes a part of its own; the first one merges them in the order of the index.

    Args:
        folder: The run's.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.rows: list[list[Any]] = []

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take in the probabilities ``[N, C]`` of a batch; without an index, the position in the loader is it."""
        index, probabilities = outputs
        rows = index.tolist() if index is not None else range(len(self.rows), len(self.rows) + len(probabilities))
        for row, values in zip(rows, probabilities.tolist(), strict=True):
            self.rows.append([row, max(range(len(values)), key=values.__getitem__), *values])

    def _part(self, rank: int) -> Path:
        return self.folder.path / f".predictions-rank{rank}.csv"

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file."""
        data: Any = getattr(trainer, "datamodule", None)
        count = len(self.rows[0]) - 2 if self.rows else 0
        names = class_names(data, count)
        self.folder.path.mkdir(parents=True, exist_ok=True)
        with self._part(trainer.global_rank).open("w", newline="") as file:
            csv.writer(file).writerows(self.rows)
        trainer.strategy.barrier()
        if not trainer.is_global_zero:
            return
        rows: list[list[str]] = []
        for rank in range(trainer.world_size):
            with self._part(rank).open(newline="") as file:
                rows += csv.reader(file)
            self._part(rank).unlink()
        with self.folder.predictions.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["index", "class", *(f"p({name})" for name in names)])
            for index, decided, *values in sorted(rows, key=lambda row: int(row[0])):
                writer.writerow([index, names[int(decided)], *values])
