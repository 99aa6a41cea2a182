"""Born-again networks by the command line: train, stop anywhere, resume, test."""

import csv
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
import yaml

from kd_lightning.cli.commands import run
from kd_lightning.models.weights import read_weights
from kd_lightning.run_folder import RunFolder

CONFIGS = Path(__file__).parents[2] / "configs"
BAN = CONFIGS / "digits/born_again/ban.yaml"
FILES = sorted(CONFIGS.glob("*/born_again/*.yaml"))
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")
BATCH = "--data.init_args.global_batch_size=404"  # 3 steps an epoch
Fit = Callable[..., RunFolder]
GoneAt = Callable[[int], AbstractContextManager[None]]


def shares(generations: int, epochs: int) -> list[str]:
    return [
        f"--model.generations={generations}",
        f"--model.epochs_per_generation={epochs}",
        f"--trainer.max_epochs={generations * epochs}",
    ]


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Fits a configuration in a working folder of its own."""
    monkeypatch.chdir(tmp_path)

    def fitted(config: Path, name: str, *options: str, code: int = 0) -> RunFolder:
        line = ["fit", "--config", str(config), "--experiment", "e", "--run", name, BATCH, *QUIET, *options]
        assert run(line) == code
        return RunFolder(Path("runs/e") / name)

    return fitted


def rows_of(folder: RunFolder) -> list[dict[str, str]]:
    with folder.metrics.open(newline="") as file:
        return list(csv.DictReader(file))


def generations_of(folder: RunFolder) -> dict[str, dict[str, torch.Tensor]]:
    return {path.stem: read_weights(path) for path in sorted(folder.path.glob("generations/*"))}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[-3] == "digits"], ids=lambda path: path.stem)
def test_every_method_trains_generations_and_tests_them(fit: Fit, path: Path) -> None:
    folder = fit(path, "r", *shares(3, 2))
    (method,) = [name for name in yaml.safe_load(path.read_text())["model"]["init_args"]["criteria"] if name != "ce"]
    with_labels = {"ban_labels"}
    rows = [row for row in rows_of(folder) if row["train/loss"]]
    assert [(row["epoch"], row["generation"]) for row in rows] == [
        (str(epoch), str(float(epoch // 2))) for epoch in range(6)
    ]
    assert [bool(row[f"train/{method}"]) for row in rows] == [False, False, True, True, True, True]
    assert [bool(row["train/ce"]) for row in rows[2:]] == [path.stem in with_labels] * 4
    assert float(rows[1]["train/loss"]) < float(rows[0]["train/loss"])
    assert list(generations_of(folder)) == ["0", "1", "2"]
    last = torch.load(folder.last, weights_only=True)["state_dict"]
    assert_same({key.removeprefix("student."): value for key, value in last.items()}, generations_of(folder)["2"])
    assert run(["test", str(folder.path), *QUIET]) == 0
    results = json.loads(folder.results.read_text())
    for name in ("generation_0", "generation_1", "generation_2", "ensemble_2", "ensemble_3"):
        assert 0 <= results[f"test/{name}_top1"] <= 1
        assert results[f"test/{name}_loss"] > 0
    assert results["test/top1"] == results["test/generation_2_top1"]
    assert results["test/teacher_top1"] == results["test/generation_1_top1"]


AVERAGE = '--trainer.callbacks=[{"class_path": "kd_lightning.callbacks.StudentEMA", "init_args": {"decay": 0.5}}]'


# Generations begin after steps 6 and 12; saved after each epoch, or each second step.
@pytest.mark.parametrize(
    ("step", "options"),
    [
        pytest.param(2, [], marks=pytest.mark.slow),
        (7, []),
        pytest.param(6, ["--checkpoints.every_steps=2"], marks=pytest.mark.slow),
        (10, [AVERAGE]),
        (13, ["--checkpoints.every_steps=2"]),
    ],
)
def test_resumed_equals_uninterrupted(fit: Fit, gone_at: GoneAt, step: int, options: Sequence[str]) -> None:
    options = [*shares(3, 2), "--trainer.log_every_n_steps=3", *options]
    whole = fit(BAN, "whole", *options)
    with gone_at(step):
        fit(BAN, "stopped", *options)
    stopped = RunFolder(Path("runs/e/stopped"))
    assert run(["resume", str(stopped.path)]) == 0
    mine, its = (torch.load(folder.last, weights_only=True) for folder in (whole, stopped))
    assert_same(mine["state_dict"], its["state_dict"])
    assert rows_of(whole) == rows_of(stopped)
    for one, other in zip(generations_of(whole).values(), generations_of(stopped).values(), strict=True):
        assert_same(one, other)
    best = [torch.load(folder.checkpoints / "best.ckpt", weights_only=True) for folder in (whole, stopped)]
    assert best[0]["generations"]["generation"] == 2
    assert best[0]["global_step"] == best[1]["global_step"]
    assert_same(*(checkpoint["state_dict"] for checkpoint in best))


def test_generations_that_do_not_fill_the_training_are_one_message(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(BAN, "r", "--trainer.max_epochs=7", code=2)
    said = capsys.readouterr().err
    assert "trainer.max_epochs must be generations x epochs_per_generation = 4 x 60 = 240, got 7" in said


def test_longer_generations_by_one_number(fit: Fit) -> None:
    folder = fit(BAN, "r", "--model.epochs_per_generation=null", "--model.generations=2", "--trainer.max_epochs=4")
    rates = [float(row["lr"]) for row in rows_of(folder) if row["lr"]]
    assert rates == pytest.approx([0.4, 0.2, 0.4, 0.2])


def test_a_teacher_that_is_given_teaches_generation_0(fit: Fit) -> None:
    teacher = fit(CONFIGS / "digits/supervised/teacher.yaml", "t", "--trainer.max_epochs=1")
    given = {"class_path": "FrozenTeacher", "init_args": {"check": False, "network": {"name": "cifar_resnet8"}}}
    given["init_args"]["network"]["weights"] = str(teacher.path)  # type: ignore[index]
    options = ["--model.first=null", f"--model.teacher={json.dumps(given)}"]
    rows = rows_of(fit(BAN, "r", *shares(2, 1), *options))
    assert [bool(row["train/kd"]) for row in rows if row["train/loss"]] == [True, True]
    assert "train/ce" not in rows[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_a_configuration_states_its_generations(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    model = config["model"]["init_args"]
    assert config["trainer"]["max_epochs"] == model["generations"] * model["epochs_per_generation"]
    method = path.stem.split("_wrn")[0]
    (term,) = [term for name, term in model["criteria"].items() if name != "ce"]
    soft = {"class_path": "SoftTarget", "init_args": {"temperature": 1.0}}
    assert term["loss"] == {"cwtm": "CWTM", "dkpp": "DKPP"}.get(method, soft)
    assert ("ce" in model["criteria"]) == (method == "ban_labels")
    assert model["first"] == {"ce": {"loss": "CrossEntropy", "weight": 1.0, "teacher": None}}
