"""Weights & Biases, offline: a run that is stopped, resumed and tested is one run there, with its final figures."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from kd_lightning.cli.commands import run
from kd_lightning.run_folder import RunFolder

CONFIGS = Path(__file__).parents[2] / "configs"
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")
HEADER, BLOCK, RECORD_HEADER, WHOLE_OR_LAST = 7, 32768, 7, (1, 4)


@pytest.fixture
def wandb() -> Iterator[Any]:
    """W&B with a service of this test's own: it takes relative paths from the folder that it was started in."""
    module = pytest.importorskip("wandb")
    module.teardown()
    yield module
    module.teardown()


class Stopped(Exception):
    """A run that is gone."""


def records(path: Path) -> list[Any]:
    """The records of a .wandb file: LevelDB's log, in blocks of 32 KiB, after a header of 7 bytes."""
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    content, found, parts, at = path.read_bytes(), [], b"", HEADER
    while at + RECORD_HEADER <= len(content):
        if BLOCK - at % BLOCK < RECORD_HEADER:
            at += BLOCK - at % BLOCK
            continue
        begin, size = at + RECORD_HEADER, int.from_bytes(content[at + 4 : at + 6], "little")
        parts += content[begin : begin + size]
        if content[at + 6] in WHOLE_OR_LAST:
            found.append(pb.Record.FromString(parts))
            parts = b""
        at = begin + size
    return found


def values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def history(found: list[Any]) -> list[dict[str, Any]]:
    return [values(record.history.item) for record in found if record.HasField("history")]


def summary(found: list[Any]) -> dict[str, Any]:
    final: dict[str, Any] = {}
    for record in found:
        final |= values(record.summary.update)
    return final


def test_stopped_resumed_and_tested_is_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wandb: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb-data"))

    def stop(self: pl.LightningModule, optimizer: torch.optim.Optimizer) -> None:
        if self.global_step == 3:
            raise Stopped

    configs = ["--config", f"{CONFIGS}/digits/supervised/teacher.yaml", "--config", f"{CONFIGS}/logger/wandb.yaml"]
    short = ["--trainer.max_epochs=2", "--trainer.limit_train_batches=2", "--trainer.log_every_n_steps=1"]
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(pl.LightningModule, "on_before_zero_grad", stop)
        run(["fit", *configs, "--experiment", "e", "--run", "r", *short, *QUIET])
    wandb.finish()
    assert run(["resume", "runs/e/r"]) == 0
    wandb.finish()
    assert run(["test", "runs/e/r", *QUIET]) == 0
    wandb.finish()

    folder = RunFolder(Path("runs/e/r"))
    found = [records(path) for path in sorted(folder.path.glob("wandb/offline-run-*/*.wandb"))]
    assert len(found) == 3  # a file for each process; all are the same run
    runs = [record.run for part in found for record in part if record.HasField("run")]
    assert {(one.run_id, one.run_group, one.display_name, one.project) for one in runs} == {
        ("e-r", "e", "r", "kd_lightning")
    }
    stopped, resumed, tested = found
    assert [row["trainer/global_step"] for row in history(stopped) if "train/loss" in row] == [1, 2, 3]
    assert [row["trainer/global_step"] for row in history(resumed) if "train/loss" in row] == [3, 4]
    assert all({"train/ce", "lr"} <= set(row) for row in history(resumed) if "train/loss" in row)
    with folder.metrics.open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    final = summary(resumed)
    assert {name: final[name] for name in ("val/top1", "train/ce", "lr")} == {
        name: float(last[name]) for name in ("val/top1", "train/ce", "lr")
    }
    assert summary(tested)["test/top1"] == json.loads(folder.results.read_text())["test/top1"]
