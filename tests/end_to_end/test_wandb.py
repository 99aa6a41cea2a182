"""Weights & Biases, offline: what one run file says after a training and its test."""

import csv
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_lightning.cli.commands import run
from kd_lightning.models import Network, save_weights

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


def values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """W&B with a service of this test's own: it takes relative paths from the folder that it was started in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb-data"))
    module = pytest.importorskip("wandb")
    module.teardown()
    yield module
    module.teardown()


def test_one_run_with_everything(wandb: Any) -> None:
    save_weights(Network("cifar_resnet8").build(10, 1), "teacher.safetensors")
    Path("average.yaml").write_text("trainer: {callbacks: [{class_path: kd_lightning.callbacks.StudentEMA}]}")
    files = [CONFIGS / "digits/offline/kd.yaml", "average.yaml", CONFIGS / "logger/wandb.yaml"]
    line = ["fit", *(f"--config={file}" for file in files), "--experiment", "e", "--run", "r", "--trainer.max_epochs=2"]
    teacher = "--model.teacher.init_args"
    line += [f"{teacher}.network.weights=teacher.safetensors", f"{teacher}.check=false"]
    assert run([*line, *QUIET]) == 0
    wandb.finish()
    assert run(["test", "runs/e/r", *QUIET]) == 0
    wandb.finish()
    paths = sorted(Path("runs/e/r/wandb").glob("offline-run-*/*.wandb"))
    assert len(paths) == 2  # one for each command; both are the same run
    deadline = time.monotonic() + PATIENCE  # W&B's own process writes them, and may be behind
    while time.monotonic() < deadline and not logged(paths) >= FIGURES:
        time.sleep(0.2)
    assert logged(paths) >= FIGURES
    trained, tested = (records(path) for path in paths)
    runs = [[record.run for record in part if record.HasField("run")] for part in (trained, tested)]
    assert {(one.run_id, one.run_group, one.display_name) for part in runs for one in part} == {("e-r", "e", "r")}
    assert [{one.job_type for one in part} for part in runs] == [{"train"}, {"test"}]
    config: dict[str, Any] = {}
    for record in trained:
        config |= values([*record.run.config.update, *record.config.update])
    stated = yaml.safe_load(Path("runs/e/r/config.yaml").read_text())
    assert {key: config[key] for key in stated} == stated
    assert [each["class_path"].rpartition(".")[2] for each in stated["trainer"]["callbacks"]] == [
        "StudentEMA",
        "WandbReport",
    ]
    assert config["teachers"]["teacher"]["weights"].startswith(
        hashlib.sha256(Path("teacher.safetensors").read_bytes()).hexdigest()
    )
    assert {"torch", "lightning", "kd_lightning"} <= config["versions"].keys()
    assert "commit" in config

    summary: list[dict[str, Any]] = [{}, {}]
    for final, part in zip(summary, (trained, tested), strict=True):
        for record in part:
            final |= values(record.summary.update)
    with Path("runs/e/r/metrics.csv").open(newline="") as file:
        figures = [float(row["val/top1"]) for row in csv.DictReader(file) if row["val/top1"]]
    assert (summary[0]["val/top1.best"], summary[0]["val/top1.last"]) == (max(figures), figures[-1])
    models = [record.artifact for record in trained if record.HasField("artifact")]
    assert [(model.name, set(model.aliases) - {"latest"}) for model in models] == [
        ("model-e-r", {"best"}),
        ("model-e-r", {"last"}),
    ]
    assert [sorted(entry.path for entry in model.manifest.contents) for model in models] == [
        ["best.ckpt", "student.safetensors"],
        ["last.ckpt", "student.safetensors"],
    ]
    assert "test/reliability" in "".join(key for record in tested for key in values(record.config.update))
    table = json.loads((paths[1].parent / "files" / summary[1]["test/images/path"]).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert {row["shown as"] for row in rows} == {"missed", "least sure"}
    assert all(row["student"] != row["label"] == row["teacher"] for row in rows if row["shown as"] == "missed")
    assert all(row["teacher, T = 4"] for row in rows)
