"""The commands: how a command line that names a run is understood, and what it leaves."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from kd_lightning.cli.commands import of_run, resumed, run, run_of, said, taken, with_configs
from kd_lightning.run_folder import RunFolder

TEACHER = Path(__file__).parents[2] / "configs/digits/supervised/teacher.yaml"
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")
SHORT = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.log_every_n_steps=1")
NAMED = ("--experiment", "e", "--run", "r")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a finished run ``runs/e/r`` of two steps."""
    work = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(work)
        assert run(["fit", "--config", str(TEACHER), *NAMED, *QUIET, *SHORT]) == 0
    return work


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A copy of that run, seen from its working folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return RunFolder(Path("runs/e/r"))


@pytest.fixture
def stopped(folder: RunFolder) -> RunFolder:
    """That run as if it had not finished."""
    folder.record.unlink()
    return folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_taken() -> None:
    line = ["fit", "--allow", "a", "--config=c", "--allow=b=c", "--allowed", "d"]
    assert taken(line, "--allow") == ["a", "b=c"]
    assert line == ["fit", "--config=c", "--allowed", "d"]
    assert taken(line, "--allow") == []
    with pytest.raises(ValueError, match="--allow needs a value"):
        taken(["fit", "--allow"], "--allow")


def test_a_configuration_of_the_package_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, file = "digits/supervised/teacher.yaml", str(TEACHER)
    line = ["fit", "--config", name, "-c", f"configs/{name}", f"--config={name}", "--run", name, "--config"]
    assert with_configs(line) == ["fit", "--config", file, "-c", file, f"--config={file}", "--run", name, "--config"]
    with pytest.raises(FileNotFoundError, match=r"no configuration techer\.yaml: did you mean .*teacher\.yaml"):
        with_configs(["fit", "--config", "techer.yaml"])


def test_the_run_that_is_meant(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resume needs the folder of a run: kd-lightning resume RUN_DIR"):
        run_of(["resume"])
    with pytest.raises(ValueError, match="test needs the folder of a run"):
        run_of(["test", "--ckpt"])
    with pytest.raises(FileNotFoundError, match="there is no run folder .*nowhere"):
        run_of(["resume", str(tmp_path / "nowhere")])
    with pytest.raises(FileNotFoundError, match=r"is not the folder of a run: it has no config\.yaml"):
        run_of(["resume", str(tmp_path)])


def test_a_finished_run_is_not_resumed(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    before = folder.last.read_bytes()
    assert run(["resume", str(folder.path)]) == 0
    assert capsys.readouterr().out == "runs/e/r has finished: there is nothing to resume\n"
    assert folder.last.read_bytes() == before


def test_a_stopped_run_goes_on_from_its_last_checkpoint(stopped: RunFolder) -> None:
    (stopped.checkpoints / ".last.ckpt.part").write_text("of a crash")
    understood = resumed(["resume", "runs/e/r", "--trainer.max_epochs=2"])
    assert understood is not None
    line, folder = understood
    assert line[:3] == ["fit", "--config", "runs/e/r/config.yaml"]
    assert line[3:] == ["--trainer.max_epochs=2", "--ckpt_path", "runs/e/r/checkpoints/last.ckpt"]
    assert folder == stopped
    assert not list(stopped.checkpoints.glob(".*"))


def test_without_a_checkpoint_it_starts_from_its_configuration(
    stopped: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    first = torch.load(stopped.last, weights_only=True)["state_dict"]
    shutil.rmtree(stopped.checkpoints)
    assert run(["resume", str(stopped.path)]) == 0
    assert "from its start: it has no checkpoint" in capsys.readouterr().out
    again = torch.load(stopped.last, weights_only=True)["state_dict"]
    assert all(torch.equal(first[key], again[key]) for key in first)
    with stopped.metrics.open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2"]


def test_a_damaged_last_checkpoint_falls_back_to_the_best(
    stopped: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(stopped.last)
    understood = resumed(["resume", "runs/e/r"])
    assert understood is not None
    assert understood[0][-1] == "runs/e/r/checkpoints/best.ckpt"
    heard = capsys.readouterr()
    assert "last.ckpt is damaged" in heard.err
    assert "resuming runs/e/r from runs/e/r/checkpoints/best.ckpt" in heard.out


def test_without_a_whole_checkpoint_nothing_starts(stopped: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    flip(stopped.last)
    flip(stopped.checkpoints / "best.ckpt")
    assert run(["resume", str(stopped.path)]) == 2
    assert "no checkpoint of runs/e/r is whole: start a new run from its config.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("chosen", ["last", "best"])
def test_the_test_of_a_run(folder: RunFolder, chosen: str) -> None:
    config = folder.config.read_text()
    assert run(["test", str(folder.path), "--ckpt", chosen, *QUIET]) == 0
    results = json.loads(folder.results.read_text())
    figures = {"test/top1", "test/top5", "test/loss", "test/ece"}
    assert figures | {"seed", "epochs", "devices", "versions", "commit", "checkpoint"} <= set(results)
    assert results["checkpoint"] == f"runs/e/r/checkpoints/{chosen}.ckpt"
    assert 0 <= results["test/top1"] <= results["test/top5"] <= 1
    assert (results["seed"], results["epochs"], results["devices"]) == (0, 1, 1)
    assert folder.config.read_text() == config


def test_the_predictions_of_a_run(folder: RunFolder) -> None:
    assert run(["predict", str(folder.path), *QUIET]) == 0
    with folder.predictions.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == {"index", "class", *(f"p({digit})" for digit in range(10))}
    for row in rows:
        probabilities = {name[2:-1]: float(value) for name, value in row.items() if name.startswith("p(")}
        assert sum(probabilities.values()) == pytest.approx(1)
        assert row["class"] == max(probabilities, key=probabilities.__getitem__)


def test_a_checkpoint_that_a_run_does_not_have(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="--ckpt must be last or best, got first"):
        of_run(["test", "runs/e/r", "--ckpt", "first"])
    (folder.checkpoints / "best.ckpt").unlink()
    assert run(["test", str(folder.path), "--ckpt=best"]) == 2
    assert "runs/e/r has no best checkpoint" in capsys.readouterr().err


def test_a_folder_in_use(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fit", "--config", str(TEACHER), *NAMED, *QUIET, *SHORT]) == 2
    assert "runs/e/r is another run's folder" in capsys.readouterr().err


def test_another_learning_rate_than_the_checkpoints(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    stated = ["--ckpt_path", str(folder.last), "--model.init_args.optimizer.init_args.lr=0.5"]
    line = ["fit", "--config", str(TEACHER), "--experiment", "e", "--run", "other", *QUIET, *SHORT, *stated]
    assert run(line) == 2
    heard = capsys.readouterr().err
    assert "0.5" in heard
    assert "0.1" in heard


def test_the_printed_configuration_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        run(["fit", "--config", str(TEACHER), "--print_config"])
    assert left.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["seed_everything"] == 0
    assert printed["trainer"]["accumulate_grad_batches"] == 1  # what the file leaves open is there too
    assert printed["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.1
    assert printed["data"]["init_args"]["global_batch_size"] == 128
    assert printed["checkpoints"]["best"] == "val/top1"
    assert not Path("runs").exists()


def test_an_error_is_one_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("KD_LIGHTNING_DEBUG", raising=False)
    assert said(ValueError("a fault"), 2) == 2
    assert capsys.readouterr().err.startswith("kd-lightning: error: a fault\n")
    monkeypatch.setenv("KD_LIGHTNING_DEBUG", "1")
    try:
        raise ValueError("a fault")
    except ValueError as error:
        said(error, 1)
    assert "Traceback" in capsys.readouterr().err
