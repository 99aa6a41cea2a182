"""TensorBoard and MLflow: what their files say after a training that is stopped, resumed and tested."""

import csv
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_lightning.cli.commands import run
from kd_lightning.run_folder import RunFolder

CONFIGS = Path(__file__).parents[2] / "configs"
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")
GoneAt = Callable[[int], AbstractContextManager[None]]


def stopped_resumed_and_tested(overlay: str, gone_at: GoneAt) -> RunFolder:
    configs = [CONFIGS / "digits/supervised/teacher.yaml", CONFIGS / f"logger/{overlay}.yaml"]
    line = ["fit", *(f"--config={config}" for config in configs), "--experiment", "e", "--run", "r", *QUIET]
    with gone_at(15):
        run([*line, "--trainer.max_epochs=3", "--trainer.log_every_n_steps=5"])
    assert run(["resume", "runs/e/r", "--trainer.log_every_n_steps=10"]) == 0  # another value of a parameter
    assert run(["test", "runs/e/r", *QUIET]) == 0
    return RunFolder(Path("runs/e/r"))


def figures_of(folder: RunFolder) -> dict[str, float]:
    """The last value of each figure in the run's own files."""
    with folder.metrics.open(newline="") as file:
        found = {key: float(value) for row in csv.DictReader(file) for key, value in row.items() if value}
    tested = json.loads(folder.results.read_text())
    return found | {key: value for key, value in tested.items() if key.startswith("test/")}


def leaves(node: Any, path: str = "") -> dict[str, str]:
    """Keys of a nested configuration, joined by slashes, and its values as text."""
    if isinstance(node, dict):
        return {key: text for name, each in node.items() for key, text in leaves(each, f"{path}/{name}").items()}
    return {path.removeprefix("/"): str(node)}


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone_at: GoneAt) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.chdir(tmp_path)
    folder = stopped_resumed_and_tested("tensorboard", gone_at)
    log = folder.path / "tensorboard"
    assert len(list(log.glob("events.out.tfevents.*"))) == 3  # one for each command
    found = events.EventAccumulator(str(log))
    found.Reload()
    figures = figures_of(folder)
    for name in ("train/ce", "val/top1", "test/top1", "lr"):
        assert found.Scalars(name)[-1].value == pytest.approx(figures[name])
    assert [event.step for event in found.Scalars("val/top1")] == [10, 20, 30]
    (plugin,) = (found.summary_metadata["_hparams_/session_start_info"].plugin_data.content,)
    assert b"model/init_args/optimizer/init_args/lr" in plugin
    written = yaml.safe_load((log / "hparams.yaml").read_text())
    stated = yaml.safe_load(folder.config.read_text())
    assert {key: written[key] for key in ("model", "data", "seed_everything")} == {
        key: stated[key] for key in ("model", "data", "seed_everything")
    }


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone_at: GoneAt) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = stopped_resumed_and_tested("mlflow", gone_at)
    client = tracking.MlflowClient(f"file:{folder.path / 'mlruns'}")
    experiment = client.get_experiment_by_name("e")
    (found,) = client.search_runs([experiment.experiment_id])  # one for all three commands
    assert (found.info.run_name, found.info.status) == ("r", "FINISHED")
    figures = figures_of(folder)
    for name in ("train/ce", "val/top1", "test/top1", "lr"):
        assert found.data.metrics[name] == pytest.approx(figures[name])
    assert [each.step for each in client.get_metric_history(found.info.run_id, "val/top1")] == [10, 20, 30]
    stated = leaves(yaml.safe_load(folder.config.read_text()))
    assert {key: text[:250] for key, text in stated.items()}.items() <= found.data.params.items()
    assert {"commit", "versions/torch"} <= found.data.params.keys()
