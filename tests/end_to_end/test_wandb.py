"""Weights & Biases, offline: what its files say of a run that is trained, stopped, resumed, tested."""

import csv
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_lightning.cli.commands import run
from kd_lightning.models import Network, save_weights
from kd_lightning.run_folder import RunFolder

CONFIGS = Path(__file__).parents[2] / "configs"
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")
NAMED = ("--experiment", "e", "--run", "r")
HEADER, BLOCK, RECORD_HEADER, WHOLE_OR_LAST = 7, 32768, 7, (1, 4)
FIGURES = {"train/ce", "train/loss", "lr", "val/top1", "test/top1"}
PATIENCE = 20  # seconds
GoneAt = Callable[[int], AbstractContextManager[None]]


def records(path: Path) -> list[Any]:
    """The records of a .wandb file: LevelDB's log format, 32 KiB blocks, after a header of 7 bytes."""
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    content, found, partial, at = path.read_bytes(), [], b"", HEADER
    while at + RECORD_HEADER <= len(content):
        if BLOCK - at % BLOCK < RECORD_HEADER:
            at += BLOCK - at % BLOCK
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        part = content[at + RECORD_HEADER : at + RECORD_HEADER + size]
        if len(part) < size:  # it is being written
            break
        partial += part
        at += RECORD_HEADER + size
        if kind in WHOLE_OR_LAST:
            found.append(pb.Record.FromString(partial))
            partial = b""
    return found


def finished(path: Path) -> list[Any]:
    """The records of a file to the end of its run; W&B's own process writes them, and may be behind."""
    deadline = time.monotonic() + PATIENCE
    while not ((found := records(path)) and found[-1].HasField("exit")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


def values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def history(found: Sequence[Any]) -> list[dict[str, Any]]:
    return [values(record.history.item) for record in found if record.HasField("history")]


def summary_of(found: Sequence[Any]) -> dict[str, Any]:
    final: dict[str, Any] = {}
    for record in found:
        final |= values(record.summary.update)
    return final


def figures(name: str) -> list[float]:
    """All values of a figure in the run's metrics file."""
    with Path("runs/e/r/metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


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
    line = ["fit", *(f"--config={file}" for file in files), *NAMED, "--trainer.max_epochs=2"]
    teacher = "--model.teacher.init_args"
    line += [f"{teacher}.network.weights=teacher.safetensors", f"{teacher}.check=false"]
    assert run([*line, *QUIET]) == 0
    wandb.finish()
    assert run(["test", "runs/e/r", *QUIET]) == 0
    wandb.finish()
    paths = sorted(Path("runs/e/r/wandb").glob("offline-run-*/*.wandb"))
    assert len(paths) == 2  # one for each command; both are the same run
    trained, tested = (finished(path) for path in paths)
    assert {key for part in (trained, tested) for row in history(part) for key in row} >= FIGURES
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

    summary = [summary_of(part) for part in (trained, tested)]
    top1 = figures("val/top1")
    assert (summary[0]["val/top1.best"], summary[0]["val/top1.last"]) == (max(top1), top1[-1])
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


def test_stopped_resumed_and_tested_is_one_run(wandb: Any, gone_at: GoneAt) -> None:
    configs = ["--config", f"{CONFIGS}/digits/supervised/teacher.yaml", "--config", f"{CONFIGS}/logger/wandb.yaml"]
    short = ["--trainer.max_epochs=3", "--trainer.limit_train_batches=2", "--trainer.log_every_n_steps=1"]
    with gone_at(5):
        run(["fit", *configs, *NAMED, *short, "--trainer.check_val_every_n_epoch=2", *QUIET])
    wandb.finish()
    assert run(["resume", "runs/e/r"]) == 0  # without another validation
    wandb.finish()
    assert run(["test", "runs/e/r", *QUIET]) == 0
    wandb.finish()

    folder = RunFolder(Path("runs/e/r"))
    found = [finished(path) for path in sorted(folder.path.glob("wandb/offline-run-*/*.wandb"))]
    assert len(found) == 3  # a file for each process; all are the same run
    runs = [record.run for part in found for record in part if record.HasField("run")]
    assert {(one.run_id, one.run_group, one.display_name, one.project) for one in runs} == {
        ("e-r", "e", "r", "kd_lightning")
    }
    stopped, resumed, tested = found
    assert [row["trainer/global_step"] for row in history(stopped) if "train/loss" in row] == [1, 2, 3, 4, 5]
    assert [row["trainer/global_step"] for row in history(resumed) if "train/loss" in row] == [5, 6]
    assert all({"train/ce", "lr"} <= set(row) for row in history(resumed) if "train/loss" in row)
    final = summary_of(resumed)
    assert {name: final[name] for name in ("train/ce", "lr")} == {
        name: figures(name)[-1] for name in ("train/ce", "lr")
    }
    (top1,) = figures("val/top1")
    assert (final["val/top1.best"], final["val/top1.last"]) == (top1, top1)
    assert folder.record.exists()
    assert summary_of(tested)["test/top1"] == json.loads(folder.results.read_text())["test/top1"]


def test_who_is_not_logged_in_is_told_so(
    wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    configs = ["--config", f"{CONFIGS}/digits/supervised/student.yaml", "--config", f"{CONFIGS}/logger/wandb.yaml"]
    assert run(["fit", *configs, *NAMED, *QUIET]) == 2
    assert "kd-lightning: error: No API key configured" in capsys.readouterr().err
