"""Which checkpoints are kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from kd_lightning.callbacks import Checkpoints
from kd_lightning.run_folder import RunFolder


def made(checkpoints: Checkpoints, validates: bool = True) -> dict[str, ModelCheckpoint]:
    kept = checkpoints.callbacks(RunFolder(Path("run")), validates)
    named: dict[str, ModelCheckpoint] = {}
    for callback in kept:
        assert isinstance(callback, ModelCheckpoint)
        named[f"{callback.filename}{callback._every_n_train_steps or ''}"] = callback
    assert len(named) == len(kept)
    return named


def test_the_last_and_the_best_are_kept() -> None:
    kept = made(Checkpoints())
    assert set(kept) == {"best", "last"}
    assert (kept["best"].monitor, kept["best"].mode) == ("val/top1", "max")
    assert kept["last"].monitor is None
    assert {Path(str(one.dirpath)) for one in kept.values()} == {(Path("run") / "checkpoints").resolve()}


def test_without_validation_there_is_no_best_one() -> None:
    assert set(made(Checkpoints(), validates=False)) == {"last"}
    assert set(made(Checkpoints(best="train/loss", mode="min"), validates=False)) == {"best", "last"}


def test_no_best_one_is_wanted() -> None:
    assert set(made(Checkpoints(best=None))) == {"last"}


def test_last_is_also_written_within_an_epoch() -> None:
    kept = made(Checkpoints(every_epochs=2, every_steps=50))
    assert set(kept) == {"best", "last", "last50"}
    assert (kept["last"]._every_n_epochs, kept["last50"]._every_n_epochs) == (2, 0)


def test_epochs_are_kept_before_the_last_one_and_named_by_how_many_were_trained() -> None:
    kept = Checkpoints(best=None, keep_every_epochs=20).callbacks(RunFolder(Path("run")), validates=True)
    epochs, last = kept
    assert isinstance(epochs, ModelCheckpoint)
    assert isinstance(last, ModelCheckpoint)
    assert (epochs._every_n_epochs, epochs.save_top_k, last.filename) == (20, -1, "last")
    name = epochs.format_checkpoint_name({"epoch": torch.tensor(19), "step": torch.tensor(7)})
    assert Path(name).name == "epoch=20.ckpt"
    assert epochs.state_key != last.state_key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_epochs": 0}, r"checkpoints\.every_epochs must be >= 1, got 0"),
        ({"keep_every_epochs": 0}, r"checkpoints\.keep_every_epochs must be >= 1, got 0"),
        ({"every_steps": -2}, r"checkpoints\.every_steps must be >= 1, got -2"),
    ],
)
def test_faults(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Checkpoints(**options)
