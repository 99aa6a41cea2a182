"""Weights & Biases, offline: what one run file says after a training and its test."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kd_lightning.cli.commands import run

CONFIGS = Path(__file__).parents[2] / "configs"
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")
HEADER, BLOCK, RECORD_HEADER = 7, 32768, 7
FIGURES = {"train/ce", "train/loss", "lr", "val/top1", "test/top1"}
PATIENCE = 20  # seconds


def records(path: Path) -> list[Any]:
    """The records of a .wandb file: LevelDB's log format, 32 KiB blocks, after a header of 7 bytes."""
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    content, found, partial, at = path.read_bytes(), [], b"", HEADER
    while at + RECORD_HEADER <= len(content):
        if BLOCK - at % BLOCK < RECORD_HEADER:
            at += BLOCK - at % BLOCK
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        partial += content[at + RECORD_HEADER : at + RECORD_HEADER + size]
        at += RECORD_HEADER + size
        if kind in (1, 4):  # whole, or the last part
            record = pb.Record()
            record.ParseFromString(partial)
            found.append(record)
            partial = b""
    return found


def logged(files: Sequence[Path]) -> set[str]:
    """Keys of the figures in run files."""
    rows = [item for file in files for record in records(file) for item in record.history.item]
    return {item.key or "/".join(item.nested_key) for item in rows}


def test_one_run_with_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    configs = ["--config", f"{CONFIGS}/digits/supervised/teacher.yaml", "--config", f"{CONFIGS}/logger/wandb.yaml"]
    line = ["fit", *configs, "--experiment", "e", "--run", "r", "--trainer.max_epochs=2", *QUIET]
    assert run(line) == 0
    import wandb

    wandb.finish()
    assert run(["test", "runs/e/r", *QUIET]) == 0
    wandb.finish()
    files = sorted(Path("runs/e/r/wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2  # one for each process that wrote; both are the same run
    deadline = time.monotonic() + PATIENCE  # W&B's own process writes them, and may be behind
    while time.monotonic() < deadline and not logged(files) >= FIGURES:
        time.sleep(0.2)
    found = [records(file) for file in files]
    runs = [record.run for part in found for record in part if record.HasField("run")]
    assert {(one.run_id, one.run_group, one.display_name) for one in runs} == {("e-r", "e", "r")}
    config = {}
    for part in found:
        for record in part:
            updates = [*record.run.config.update, *record.config.update]
            config |= {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}
    assert config["seed_everything"] == 0
    assert config["trainer"]["max_epochs"] == 2
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.1
    assert "commit" in config
    assert logged(files) >= FIGURES
