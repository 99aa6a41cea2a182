"""The card of a run: at its start who learns what from whom, at its end what came of it and what may follow."""

import io
import shutil
import time
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from rich.table import Table

from kd_lightning.callbacks import run_facts
from kd_lightning.callbacks.pace import images_in
from kd_lightning.distillers import Distiller, OnlineDistiller
from kd_lightning.distillers.formula import formula, formulas_of
from kd_lightning.run_folder import RunFolder

WIDEST = 100  # characters


def drawn(title: str, rows: Mapping[str, str]) -> str:
    """A table of names and what they are, as text for the present terminal."""
    table = Table(title=title, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, what in rows.items():
        table.add_row(name, what)
    shown = io.StringIO()
    width = min(shutil.get_terminal_size((WIDEST, 24)).columns, WIDEST)
    Console(file=shown, width=width, markup=False, highlight=False).print(table)
    return shown.getvalue().rstrip()


def next_commands(run: RunFolder, part: str | None = None) -> str:
    """What may follow a training, a command a line.

    Args:
        run: Its folder.
        part: Which of several networks is exported; None for the student.
    """
    onnx = run.path / "onnx" / "student.onnx"
    chosen = "" if part is None else f" --part {part}"
    return (
        f"  kd-lightning test {run.path}\n"
        f"  kd-lightning report {run.path}\n"
        f"  kd-lightning export {run.path} --format onnx --output {onnx}{chosen}"
    )


def best_of(trainer: pl.Trainer) -> dict[str, str]:
    """The best value of each figure by which the best checkpoint is chosen."""
    return {
        f"best {each.monitor}": f"{float(each.best_model_score):.4f}"
        for each in trainer.checkpoint_callbacks
        if isinstance(each, ModelCheckpoint) and each.best_model_score is not None
    }


class RunCard(pl.Callback):
    """Shows a card before the first step, at the end of a training, and after a test.

    Each is one message of Lightning's log, at the level of information, as the table of the taps is: what silences the
    one, silences the other. The teacher's top-1 is that of its examination.

    Args:
        folder: The run's; None where nothing is kept, as in a ``fast_dev_run``.
        config: The complete configuration as YAML, for the names of the networks and the formula; without it they are
            known by their classes.
        figures: Whether the figures of a test are shown.
    """

    def __init__(self, folder: RunFolder | None = None, config: str = "", figures: bool = True) -> None:
        self.folder, self.figures = folder, figures
        self.model: Mapping[str, Any] = (yaml.safe_load(config) or {}).get("model") or {}
        self._shown, self._started = False, 0.0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to measure the time."""
        self._shown, self._started = False, time.monotonic()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Show the card once, in the first hook after the examination that a resumed epoch has too."""
        if self._shown:
            return
        self._shown = True
        rows = run_facts.learners(pl_module, self.model.get("init_args") or {})
        rows |= run_facts.teachers(pl_module, trainer.callback_metrics)
        if isinstance(pl_module, Distiller):
            rows |= formulas_of(self.model) if self.model else {"loss": formula(pl_module.criteria)}
        rows |= {
            "data": run_facts.data(trainer, pl_module),
            "length": f"{run_facts.length(trainer)}, {run_facts.batch(trainer, images_in(batch))}",
            "devices": run_facts.devices(trainer),
            "results": "none are kept" if self.folder is None else str(self.folder.path),
        }
        rank_zero_info(drawn(type(pl_module).__name__, rows))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the last and the best figure, and the next commands."""
        last = trainer.callback_metrics.get("val/top1")
        rows = {} if last is None else {"val/top1": f"{float(last):.4f}"}
        rows |= best_of(trainer) | {"took": f"{time.monotonic() - self._started:,.1f} s"}
        part = pl_module.parts()[0] if isinstance(pl_module, OnlineDistiller) else None
        following = "" if self.folder is None else f"\nnext:\n{next_commands(self.folder, part)}"
        rank_zero_info(drawn("trained", rows) + following)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the figures of the test."""
        if self.figures:
            rank_zero_info(drawn("tested", {k: f"{float(v):.4f}" for k, v in trainer.callback_metrics.items()}))
