"""The command line on real images, in this process: train, distil, test, predict, stop, resume."""

import csv
import json
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kd_lightning.callbacks import Preempted
from kd_lightning.cli.commands import run
from kd_lightning.run_folder import RunFolder

CONFIGS = Path(__file__).parents[2] / "configs"
TEACHER, KD = CONFIGS / "digits/supervised/teacher.yaml", CONFIGS / "digits/offline/kd.yaml"
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")
SMALL = "--data.init_args.global_batch_size=128"
AtStep = Callable[[int, Callable[[], None]], None]
GoneAt = Callable[[int], AbstractContextManager[None]]
Fit = Callable[..., RunFolder]


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Fits a configuration in a working folder of its own."""
    monkeypatch.chdir(tmp_path)

    def fitted(config: Path, name: str, *options: str, code: int = 0) -> RunFolder:
        line = ["fit", "--config", str(config), "--experiment", "e", "--run", name, SMALL, *QUIET, *options]
        assert run(line) == code
        return RunFolder(Path("runs/e") / name)

    return fitted


def student_of(folder: RunFolder) -> dict[str, torch.Tensor]:
    """All that is trained or remembered: an extra state's entries beside the others."""
    found = {}
    for key, value in torch.load(folder.last, weights_only=True)["state_dict"].items():
        found |= {f"{key}.{name}": part for name, part in value.items()} if isinstance(value, dict) else {key: value}
    return found


def assert_same(one: RunFolder, other: RunFolder) -> None:
    mine, its = student_of(one), student_of(other)
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[key], its[key]) for key in mine)


def rows_of(folder: RunFolder) -> list[dict[str, str]]:
    with folder.metrics.open(newline="") as file:
        return list(csv.DictReader(file))


def distil(fit: Fit, name: str, teacher: RunFolder, *options: str, code: int = 0) -> RunFolder:
    weights = f"--model.teacher.init_args.network.weights={teacher.path}"
    return fit(KD, name, weights, "--model.teacher.init_args.check.above_chance=0", *options, code=code)


def test_a_run_leaves_what_the_readme_says(fit: Fit) -> None:
    folder = fit(TEACHER, "t", "--trainer.max_epochs=2")
    assert {path.name for path in folder.path.iterdir()} == {"config.yaml", "metrics.csv", "checkpoints", "run.json"}
    assert {path.name for path in folder.checkpoints.iterdir()} == {"best.ckpt", "last.ckpt"}
    assert yaml.safe_load(folder.config.read_text())["trainer"]["max_epochs"] == 2
    rows = rows_of(folder)
    assert [(row["step"], row["epoch"]) for row in rows] == [("10", "0"), ("20", "1")]
    assert all(row[key] for row in rows for key in ("train/ce", "train/loss", "val/top1", "val/loss", "lr"))
    assert run(["test", str(folder.path), *QUIET]) == 0
    results = json.loads(folder.results.read_text())
    assert {
        "test/top1",
        "test/top5",
        "test/loss",
        "test/ece",
        "seed",
        "epochs",
        "devices",
        "versions",
        "commit",
    } <= set(results)
    assert (results["seed"], results["epochs"], results["devices"]) == (0, 2, 1)
    assert run(["test", str(folder.path), "--ckpt", "best", *QUIET]) == 0
    assert json.loads(folder.results.read_text())["checkpoint"].endswith("best.ckpt")
    assert run(["predict", str(folder.path), *QUIET]) == 0
    with folder.predictions.open(newline="") as file:
        predictions = list(csv.DictReader(file))
    assert [int(row["index"]) for row in predictions] == list(range(len(predictions)))
    assert sum(float(value) for key, value in predictions[0].items() if key.startswith("p(")) == pytest.approx(1)


def test_distillation_reports_the_teacher_and_keeps_it_out_of_the_checkpoint(fit: Fit) -> None:
    teacher = fit(TEACHER, "t", "--trainer.max_epochs=2")
    folder = distil(fit, "kd", teacher, "--trainer.max_epochs=2")
    assert all(key.startswith("student.") for key in student_of(folder))
    assert run(["test", str(folder.path), *QUIET]) == 0
    results = json.loads(folder.results.read_text())
    assert run(["test", str(teacher.path), *QUIET]) == 0
    assert results["test/teacher_top1"] == json.loads(teacher.results.read_text())["test/top1"]
    assert 0 <= results["test/agreement"] <= 1
    assert results["test/teacher_kl"] > 0
    first, last = rows_of(folder)[0], rows_of(folder)[-1]
    assert float(last["train/kd"]) < float(first["train/kd"])


@pytest.mark.parametrize(
    ("step", "options"),
    [
        pytest.param(4, [], marks=pytest.mark.slow),
        (14, []),
        pytest.param(5, ["--checkpoints.every_steps=4"], marks=pytest.mark.slow),
        pytest.param(17, ["--checkpoints.every_steps=3"], marks=pytest.mark.slow),
        (20, ["--checkpoints.every_steps=5"]),
    ],
)
def test_resumed_equals_uninterrupted(fit: Fit, gone_at: GoneAt, step: int, options: Sequence[str]) -> None:
    options = ["--trainer.max_epochs=3", "--trainer.log_every_n_steps=4", *options]
    whole = fit(TEACHER, "whole", *options)
    with gone_at(step):
        fit(TEACHER, "stopped", *options)
    stopped = RunFolder(Path("runs/e/stopped"))
    config = stopped.config.read_text()
    assert run(["resume", str(stopped.path)]) == 0
    assert_same(whole, stopped)
    assert rows_of(whole) == rows_of(stopped)
    assert stopped.config.read_text() == config


def test_resumed_distillation_with_an_average_equals_uninterrupted(fit: Fit, gone_at: GoneAt) -> None:
    teacher = fit(TEACHER, "t", "--trainer.max_epochs=1")
    average = '--trainer.callbacks=[{"class_path": "kd_lightning.callbacks.StudentEMA", "init_args": {"decay": 0.9}}]'
    options = ["--trainer.max_epochs=2", "--checkpoints.every_steps=4", average]
    whole = distil(fit, "whole", teacher, *options)
    with gone_at(15):
        distil(fit, "stopped", teacher, *options)
    stopped = RunFolder(Path("runs/e/stopped"))
    assert run(["resume", str(stopped.path)]) == 0
    assert_same(whole, stopped)
    ours, its = (torch.load(folder.last, weights_only=True)["ema"] for folder in (whole, stopped))
    assert all(torch.equal(ours[key], its[key]) for key in ours)


REMEMBERING = {
    "ce": {"loss": "CrossEntropy", "weight": 1.0, "teacher": None},
    "crd": {"loss": {"class_path": "CRD", "init_args": {"dim": 8, "negatives": 64}}, "weight": 0.1},
    "ft": {"loss": {"class_path": "FactorTransfer", "init_args": {"paraphraser_epochs": 1}}, "weight": 1.0},
    "kd": {"loss": {"class_path": "CurriculumTemperature", "init_args": {"loss": "SoftTarget"}}, "weight": 1.0},
    "vid": {"loss": "VID", "weight": 0.1},
}


@pytest.mark.parametrize("step", [pytest.param(6, marks=pytest.mark.slow), 16])
def test_resumed_adapters_temperature_and_memory_equal_uninterrupted(fit: Fit, gone_at: GoneAt, step: int) -> None:
    teacher = fit(TEACHER, "t", "--trainer.max_epochs=1")
    options = ["--trainer.max_epochs=2", "--checkpoints.every_steps=4", f"--model.criteria={json.dumps(REMEMBERING)}"]
    whole = distil(fit, "whole", teacher, *options)
    with gone_at(step):
        distil(fit, "stopped", teacher, *options)
    stopped = RunFolder(Path("runs/e/stopped"))
    assert run(["resume", str(stopped.path)]) == 0
    assert "criteria.losses.crd._extra_state.bank" in student_of(whole)
    assert_same(whole, stopped)
    assert rows_of(whole) == rows_of(stopped)


def test_sigterm_saves_at_a_step_and_leaves_with_75(fit: Fit, at_step: AtStep) -> None:
    whole = fit(TEACHER, "whole", "--trainer.max_epochs=2")
    at_step(13, lambda: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    with pytest.raises(Preempted) as left:
        fit(TEACHER, "stopped", "--trainer.max_epochs=2")
    signal.signal(signal.SIGTERM, before[0])
    signal.signal(signal.SIGUSR1, before[1])
    assert left.value.code == 75
    stopped = RunFolder(Path("runs/e/stopped"))
    assert torch.load(stopped.last, weights_only=True)["global_step"] == 14
    assert run(["resume", str(stopped.path)]) == 0
    assert_same(whole, stopped)


def test_finished_run_is_not_resumed(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit(TEACHER, "t", "--trainer.max_epochs=1")
    assert run(["resume", str(folder.path)]) == 0
    assert "has finished" in capsys.readouterr().out


def test_damaged_checkpoints_are_named_and_an_older_one_is_taken(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit(TEACHER, "t", "--trainer.max_epochs=1")
    folder.record.unlink()
    content = bytearray(folder.last.read_bytes())
    content[len(content) // 2] ^= 1
    folder.last.write_bytes(bytes(content))
    assert run(["resume", str(folder.path)]) == 0
    said = capsys.readouterr()
    assert "last.ckpt is damaged" in said.err
    assert "best.ckpt" in said.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.max_epoch=3"], "did you mean"),
        (["--model.init_args.optimiser=torch.optim.SGD"], "optimiser"),
        (["--experiment", "a/b"], "--experiment must be the name of one folder"),
        (["--data.init_args.global_batch_size=0"], "global_batch_size must be >= 1, got 0"),
        (
            ["--data.init_args.global_batch_size=5000", "--data.init_args.drop_last=true"],
            "fewer than one batch of 5000",
        ),
        (["--model.init_args.student.name=cifar_resnet21"], "cifar_resnet20"),
        (["--model.init_args.student.weights=nowhere.ckpt"], "nowhere.ckpt"),
        (["--model.init_args.optimizer=os.system"], "os.system"),
        (["--trainer.callbacks=os.system"], "os.system"),
    ],
)
def test_what_the_user_can_mend_is_one_message_and_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: Sequence[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code: Any = run(["fit", "--config", str(TEACHER), *QUIET, *options])
    except SystemExit as left:
        code = left.code
    assert code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer:\n  max_epochs: 1\n  max_epochs: 2\n", "line 3, column 3: the key 'max_epochs' is stated twice"),
        ("trainer:\n  max_epochs: .inf\n", "line 2, column 15: .inf is not a finite number"),
        ("trainer: [\n", "is not YAML"),
        ("7\n", "must hold keys and values"),
    ],
)
def test_faulty_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert run(["fit", "--config", str(tmp_path / "c.yaml")]) == 2
    assert message in capsys.readouterr().err


def test_folder_in_use_is_an_error(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit(TEACHER, "t", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1")
    fit(TEACHER, "t", code=2)
    assert "another run's folder" in capsys.readouterr().err


def test_a_checkpoint_does_not_override_what_is_stated(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit(TEACHER, "t", "--trainer.max_epochs=1")
    stated = ["--trainer.max_epochs=1", f"--ckpt_path={folder.last}"]
    fit(TEACHER, "lr", *stated, "--model.init_args.optimizer.init_args.lr=0.5", code=2)
    assert "lr: 0.5 here, 0.1 in the checkpoint" in capsys.readouterr().err
    fit(TEACHER, "net", *stated, "--model.init_args.student.name=cifar_resnet14", code=2)
    assert "the checkpoint" in capsys.readouterr().err


def test_recipe_is_trained_once(fit: Fit, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe, config = tmp_path / "teacher.yaml", tmp_path / "kd.yaml"
    stated = yaml.safe_load(TEACHER.read_text())
    stated["trainer"] |= {"max_epochs": 1, "enable_progress_bar": False}
    recipe.write_text(yaml.safe_dump(stated))
    stated = yaml.safe_load(KD.read_text())
    teacher = stated["model"]["init_args"]["teacher"]["init_args"]
    teacher["network"]["weights"], teacher["check"] = {"recipe": "teacher.yaml"}, False
    config.write_text(yaml.safe_dump(stated))
    for name in ("one", "two"):
        folder = fit(config, name, "--trainer.max_epochs=1", "--trainer.limit_train_batches=2")
        assert "recipe: teacher.yaml" in folder.config.read_text()
    assert capfd.readouterr().out.count("training the recipe") == 1
    assert len(list(Path("runs/recipes").glob("teacher-*/run.json"))) == 1


def test_teacher_near_chance_stops_the_run(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = fit(TEACHER, "t", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1")
    distil(fit, "kd", teacher, "--model.teacher.init_args.check.above_chance=9", code=2)
    assert "near chance" in capsys.readouterr().err


def test_dry_run_leaves_no_run(fit: Fit) -> None:
    folder = fit(TEACHER, "dry", "--trainer.fast_dev_run=2")
    assert not folder.path.exists()
