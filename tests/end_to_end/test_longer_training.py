"""A longer training by one number: what is stated in shares of the training follows ``--trainer.max_epochs``."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kd_lightning.cli.commands import run
from kd_lightning.distillers import Ramp
from kd_lightning.models import Network, save_weights
from kd_lightning.run_folder import RunFolder

CONFIGS = Path(__file__).parents[2] / "configs/digits"
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")
AN_EPOCH_A_ROW = ("--trainer.log_every_n_steps=100", "--data.init_args.global_batch_size=404")
STEADY = "--model.scheduler=null"
Fit = Callable[..., RunFolder]


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Fits a configuration in a working folder of its own."""
    monkeypatch.chdir(tmp_path)

    def fitted(config: str, name: str, *options: str, code: int = 0) -> RunFolder:
        line = ["fit", "--config", str(CONFIGS / config), "--experiment", "e", "--run", name, *QUIET, *options]
        assert run(line) == code
        return RunFolder(Path("runs/e") / name)

    return fitted


def schedule(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"kd_lightning.distillers.{name}", "init_args": {"weight": 1.0, **arguments}}


def teacher_free(weight: dict[str, Any]) -> tuple[str, str]:
    """Options of a training of which only this weight changes."""
    terms = {
        "ce": {"loss": "CrossEntropy", "weight": 1.0, "teacher": None},
        "tf": {"loss": "TeacherFree", "weight": weight, "teacher": None},
    }
    return f"--model.criteria={json.dumps(terms)}", STEADY


def logged(folder: RunFolder, name: str) -> list[float]:
    """A term in each epoch; 0 where it was not computed."""
    with folder.metrics.open(newline="") as file:
        return [float(row.get(f"train/{name}") or 0) for row in csv.DictReader(file) if row["train/loss"]]


def weights(folder: RunFolder) -> list[float]:
    """The weight of the second term in each epoch, from loss = ce + weight tf."""
    values = zip(*(logged(folder, name) for name in ("loss", "ce", "tf")), strict=True)
    return [(loss - ce) / tf for loss, ce, tf in values]


def test_twice_the_epochs_are_twice_the_ramp(fit: Fit) -> None:
    options = (*AN_EPOCH_A_ROW, *teacher_free(schedule("Ramp", epochs=0.5)))
    short = fit("offline/tf_kd.yaml", "short", *options, "--trainer.max_epochs=4")
    long = fit("offline/tf_kd.yaml", "long", *options, "--trainer.max_epochs=8")
    assert weights(short) == pytest.approx([0.5, 1.0, 1.0, 1.0], rel=1e-3)
    assert weights(long) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0], rel=1e-3)


def test_a_training_that_is_made_longer_when_resumed_has_the_shares_of_its_new_length(fit: Fit) -> None:
    options = (*AN_EPOCH_A_ROW, *teacher_free(schedule("Ramp", epochs=0.5)))
    short = fit("offline/tf_kd.yaml", "short", *options, "--trainer.max_epochs=2")
    long = fit("offline/tf_kd.yaml", "long", *options, "--trainer.max_epochs=8", f"--ckpt_path={short.last}")
    assert weights(short) == pytest.approx([1.0, 1.0], rel=1e-3)
    assert weights(long) == pytest.approx([0.75, 1.0, 1.0, 1.0, 1.0, 1.0], rel=1e-3)


def test_a_learning_rate_in_shares_is_not_stretched_behind_the_command_line(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    short = fit("offline/tf_kd.yaml", "short", *AN_EPOCH_A_ROW, "--trainer.max_epochs=1")
    again = ["--trainer.max_epochs=2", f"--ckpt_path={short.last}"]
    fit("offline/tf_kd.yaml", "long", *AN_EPOCH_A_ROW, *again, code=2)
    assert "scheduler ShareCosineLR epochs: 2 here, 1 in the checkpoint" in capsys.readouterr().err


def test_where_only_steps_are_counted_epochs_serve_and_shares_do_not(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = (*AN_EPOCH_A_ROW, "--trainer.max_epochs=-1", "--trainer.max_steps=9")  # 3 an epoch
    whole = fit("offline/tf_kd.yaml", "epochs", *steps, *teacher_free(schedule("Ramp", epochs=2)))
    assert weights(whole) == pytest.approx([0.5, 1.0, 1.0], rel=1e-3)
    fit("offline/tf_kd.yaml", "share", *steps, *teacher_free(schedule("Ramp", epochs=0.5)), code=2)
    said = capsys.readouterr().err
    assert "criteria.tf: 0.5 is a share of the training, which needs trainer.max_epochs >= 1" in said


@pytest.mark.parametrize("epochs", [2, 4])
def test_shares_are_of_each_generation(fit: Fit, epochs: int) -> None:
    options = [
        *AN_EPOCH_A_ROW,
        "--model.generations=2",
        "--model.epochs_per_generation=null",
        f"--trainer.max_epochs={2 * epochs}",
        f"--model.first.ce.weight={json.dumps(schedule('Ramp', epochs=1.0))}",
        f"--model.criteria.kd.weight={json.dumps(schedule('Window', start=0.5))}",
    ]
    folder = fit("born_again/ban_labels.yaml", "b", *options)
    loss, ce, kd = (logged(folder, name) for name in ("loss", "ce", "kd"))
    first = [value / label for value, label in zip(loss[:epochs], ce[:epochs], strict=True)]
    assert first == pytest.approx([(epoch + 1) / epochs for epoch in range(epochs)], rel=1e-3)
    assert [value > 0 for value in kd] == [False] * epochs + [False] * (epochs // 2) + [True] * (epochs // 2)


RAMP = json.dumps(schedule("Ramp", epochs=0.5))
PEERS = {name: {"network": {"name": "cifar_resnet8", "kwargs": {"widths": [2, 2, 4, 8]}}} for name in "abc"}


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("online/dml.yaml", [f"--model.peers={json.dumps(PEERS)}", f"--model.criteria.kd.weight={RAMP}"]),
        ("deit/hard.yaml", [f"--model.criteria.hard.weight={RAMP}"]),
        ("data_free/adversarial.yaml", [f"--model.criteria.kd.weight={RAMP}"]),
        ("data_free/adversarial.yaml", [f"--model.generator_criteria.one_hot.weight={RAMP}"]),
    ],
)
def test_every_scheme_tells_its_schedules_the_length_of_the_training(
    config: str, options: list[str], fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[tuple[int, int | None]] = set()
    original = Ramp.__call__

    def watched(self: Ramp, epoch: int, epochs: int | None) -> float:
        asked.add((epoch, epochs))
        return original(self, epoch, epochs)

    monkeypatch.setattr(Ramp, "__call__", watched)
    few = ["--trainer.max_epochs=3", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]
    if not config.startswith("online"):
        save_weights(Network("cifar_resnet8").build(10, 1), Path("teacher.safetensors"))
        few += [
            "--model.teacher.init_args.network.weights=teacher.safetensors",
            "--model.teacher.init_args.check=false",
        ]
    fit(config, "r", *few, *options)
    assert asked == {(0, 3), (1, 3), (2, 3)}
