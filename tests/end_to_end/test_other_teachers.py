"""Teachers beyond one frozen network, from the command line: averages, ensembles, none, and earlier epochs."""

import csv
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.cli.commands import run
from kd_lightning.run_folder import RunFolder

CONFIGS = Path(__file__).parents[2] / "configs/digits"
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")
Fit = Callable[..., RunFolder]
GoneAt = Callable[[int], AbstractContextManager[None]]


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Fits a configuration in a working folder of its own."""
    monkeypatch.chdir(tmp_path)

    def fitted(config: Path, name: str, *options: str, code: int = 0) -> RunFolder:
        assert run(["fit", "--config", str(config), "--experiment", "e", "--run", name, *QUIET, *options]) == code
        return RunFolder(Path("runs/e") / name)

    return fitted


def checkpoint(folder: RunFolder) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder.last, weights_only=True)
    return content


def results(folder: RunFolder) -> dict[str, Any]:
    assert run(["test", str(folder.path), *QUIET]) == 0
    content: dict[str, Any] = json.loads(folder.results.read_text())
    return content


@pytest.mark.parametrize(("step", "every"), [pytest.param(14, 4, marks=pytest.mark.slow), (7, 1)])
def test_a_resumed_mean_teacher_equals_the_uninterrupted_one(fit: Fit, gone_at: GoneAt, step: int, every: int) -> None:
    config = CONFIGS / "offline/mean_teacher.yaml"
    options = ["--trainer.max_epochs=2", f"--checkpoints.every_steps={every}"]
    whole = fit(config, "whole", *options)
    with gone_at(step):
        fit(config, "stopped", *options)
    stopped = RunFolder(Path("runs/e/stopped"))
    assert checkpoint(stopped)["global_step"] == step // every * every
    assert run(["resume", str(stopped.path)]) == 0
    for part in ("state_dict", "teacher"):
        mine, its = checkpoint(whole)[part], checkpoint(stopped)[part]
        assert mine.keys() == its.keys()
        assert all(torch.equal(mine[key], its[key]) for key in mine), part
    student = checkpoint(whole)["state_dict"]
    assert all(f"student.{key}" in student for key in checkpoint(whole)["teacher"])
    assert any(not torch.equal(value, student[f"student.{key}"]) for key, value in checkpoint(whole)["teacher"].items())


def test_a_mean_teacher_is_tested_from_its_checkpoint_and_other_ones_are_refused(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fit(CONFIGS / "offline/mean_teacher.yaml", "m", "--trainer.max_epochs=3")
    figures = results(folder)
    average = checkpoint(folder)
    average["state_dict"] = {f"student.{key}": value for key, value in average["teacher"].items()}
    other = fit(CONFIGS / "supervised/student.yaml", "s", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1")
    torch.save(average, other.last)
    assert results(other)["test/top1"] == figures["test/teacher_top1"]
    del average["teacher"]
    torch.save(average, folder.last)
    assert run(["test", str(folder.path), *QUIET]) == 2
    assert "the checkpoint holds no moving average of the student" in capsys.readouterr().err


def test_a_resumed_centre_equals_the_uninterrupted_one_and_neighbours_are_reported(fit: Fit, gone_at: GoneAt) -> None:
    options = ["--trainer.max_epochs=2", "--checkpoints.every_steps=4"]
    whole = fit(CONFIGS / "offline/dino.yaml", "whole", *options)
    with gone_at(22):
        fit(CONFIGS / "offline/dino.yaml", "stopped", *options)
    stopped = RunFolder(Path("runs/e/stopped"))
    assert run(["resume", str(stopped.path)]) == 0
    mine, its = checkpoint(whole), checkpoint(stopped)
    centre = "criteria.losses.dino._extra_state"
    assert torch.equal(mine["state_dict"].pop(centre)["centre"], its["state_dict"].pop(centre)["centre"])
    for part in ("state_dict", "teacher"):
        assert all(torch.equal(mine[part][key], its[part][key]) for key in mine[part]), part
    assert stopped.metrics.read_text() == whole.metrics.read_text()
    assert "val/knn_top1" in whole.metrics.read_text().splitlines()[0]


def neighbours(folder: RunFolder) -> list[float]:
    """Top-1 of the nearest neighbours after each epoch."""
    with folder.metrics.open() as file:
        return [float(row["val/knn_top1"]) for row in csv.DictReader(file) if row["val/knn_top1"]]


@pytest.mark.slow
def test_dino_learns_what_neighbours_confirm(fit: Fit) -> None:
    config = CONFIGS / "offline/dino.yaml"
    (untrained,) = neighbours(fit(config, "u", "--trainer.max_epochs=1", "--model.optimizer.init_args.lr=0"))
    learnt = neighbours(fit(config, "t", "--trainer.max_epochs=10"))
    assert 0.8 < untrained < 0.9
    assert learnt[-1] > untrained + 0.03


def test_teacher_free_needs_no_teacher(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit(CONFIGS / "offline/tf_kd.yaml", "t", "--trainer.max_epochs=10")
    figures = results(folder)
    assert figures["test/top1"] > 0.5
    assert "test/teacher_top1" not in figures
    asking = json.dumps({"kd": {"loss": "SoftTarget"}})
    fit(CONFIGS / "offline/tf_kd.yaml", "faulty", f"--model.criteria={asking}", code=2)
    assert "criteria.kd asks the teacher, but teacher is null" in capsys.readouterr().err


def test_every_member_of_an_ensemble_is_examined(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    teachers = {
        "residual": fit(CONFIGS / "supervised/teacher.yaml", "r", "--trainer.max_epochs=4"),
        "wide": fit(CONFIGS / "supervised/wide_teacher.yaml", "w", "--trainer.max_epochs=1"),
    }
    key = "--model.teacher.init_args.teachers"
    options = [f"{key}.{name}.init_args.network.weights={folder.path}" for name, folder in teachers.items()]
    options += ["--trainer.max_epochs=1", "--model.teacher.init_args.weights=cross_entropy"]
    passing = [f"{key}.{name}.init_args.check.above_chance=0" for name in teachers]
    figures = results(fit(CONFIGS / "offline/ensemble.yaml", "e", *options, *passing))
    alone = {name: results(folder)["test/top1"] for name, folder in teachers.items()}
    assert min(alone.values()) < figures["test/teacher_top1"] < 1  # weights by the label would be right for sure
    fit(
        CONFIGS / "offline/ensemble.yaml",
        "f",
        *options,
        passing[0],
        f"{key}.wide.init_args.check.above_chance=9",
        code=2,
    )
    assert "wide: the teacher's top-1 is" in capsys.readouterr().err


def test_a_teacher_is_taken_at_an_earlier_epoch(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = fit(
        CONFIGS / "supervised/teacher.yaml", "t", "--trainer.max_epochs=5", "--checkpoints.keep_every_epochs=2"
    )
    kept = {path.name for path in teacher.checkpoints.glob("epoch*")}
    assert kept == {"epoch=2.ckpt", "epoch=4.ckpt"}
    short = fit(CONFIGS / "supervised/teacher.yaml", "s", "--trainer.max_epochs=5", "--checkpoints.best=null")
    stored = torch.load(teacher.checkpoints / "epoch=2.ckpt", weights_only=True)
    assert (stored["epoch"], stored["global_step"]) == (1, 20)
    options = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--model.teacher.init_args.check=false"]
    weights = "--model.teacher.init_args.network.weights"
    folder = fit(CONFIGS / "offline/kd.yaml", "kd", *options, f"{weights}={teacher.path}@epoch=2")
    torch.save(stored, short.last)
    assert results(folder)["test/teacher_top1"] == results(short)["test/top1"]
    fit(CONFIGS / "offline/kd.yaml", "none", *options, f"{weights}={teacher.path}@epoch=3", code=2)
    assert "has no checkpoint of epoch 3: it has epochs 2, 4" in capsys.readouterr().err
