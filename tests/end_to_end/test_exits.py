"""A network with exits by the command line: train, stop, resume, test, and take each exit out alone."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from kd_lightning.cli.commands import run
from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.distillers import Classifier
from kd_lightning.models import Network
from kd_lightning.run_folder import RunFolder

CONFIGS = Path(__file__).parents[2] / "configs/digits"
CONFIG = CONFIGS / "online/be_your_own_teacher.yaml"
PLAIN: dict[str, Any] = {"name": "cifar_resnet8", "kwargs": {"widths": [2, 2, 4, 8]}}
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")
Fit = Callable[..., RunFolder]
GoneAt = Callable[[int], AbstractContextManager[None]]


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Fits a configuration in a working folder of its own."""
    monkeypatch.chdir(tmp_path)

    def fitted(config: Path, name: str, *options: str, code: int = 0) -> RunFolder:
        line = ["fit", "--config", str(config), "--experiment", "e", "--run", name, *QUIET, *options]
        assert run(line) == code
        return RunFolder(Path("runs/e") / name)

    return fitted


def state(folder: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder.last, weights_only=True)["state_dict"]
    return found


def figures_of(folder: RunFolder) -> dict[str, Any]:
    assert run(["test", str(folder.path), *QUIET]) == 0
    found: dict[str, Any] = json.loads(folder.results.read_text())
    return found


def test_resumed_equals_uninterrupted(fit: Fit, gone_at: GoneAt) -> None:
    options = ["--trainer.max_epochs=2", "--trainer.log_every_n_steps=4", "--checkpoints.every_steps=4"]
    whole = fit(CONFIG, "whole", *options)
    with gone_at(14):
        fit(CONFIG, "stopped", *options)
    stopped = RunFolder(Path("runs/e/stopped"))
    assert run(["resume", str(stopped.path)]) == 0
    mine, its = state(whole), state(stopped)
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[key], its[key]) for key in mine)
    assert whole.metrics.read_text() == stopped.metrics.read_text()


def recipe(folder: RunFolder, peer: str) -> Network:
    """One exit of a run, or its network without exits."""
    weights = f"{folder.path}#peer={peer}"
    if peer == "net":
        return Network(**PLAIN, weights=weights)
    kwargs = {"network": PLAIN, "only": int(peer.removeprefix("net_"))}
    return Network("kd_lightning.models.MultiExitNetwork", kwargs, weights=weights)


def test_an_exit_alone_has_the_accuracy_that_was_reported_for_it(fit: Fit) -> None:
    folder = fit(CONFIG, "exits", "--trainer.max_epochs=5")
    figures = figures_of(folder)
    assert figures["test/top1"] == figures["test/net_top1"]
    assert 0 <= figures["test/net_ensemble_top1"] <= 1
    sizes = {}
    for peer in ("net_1", "net_2", "net"):
        alone = Classifier(recipe(folder, peer), lambda p: torch.optim.SGD(p, 0.1))
        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
        (found,) = trainer.test(alone, DigitsDataModule(global_batch_size=128), verbose=False)
        for figure in ("top1", "loss", "ece"):
            assert found[f"test/{figure}"] == pytest.approx(figures[f"test/{peer}_{figure}"], rel=1e-5), peer
        assert alone.student is not None
        sizes[peer] = sum(parameter.numel() for parameter in alone.student.parameters())
    assert sizes["net_1"] < sizes["net_2"] < sizes["net"]
    assert len({figures[f"test/{peer}_loss"] for peer in sizes}) == 3


def test_an_exit_teaches_another_run(fit: Fit) -> None:
    folder = fit(CONFIG, "exits", "--trainer.max_epochs=2")
    figures = figures_of(folder)
    given = {"network": PLAIN, "only": 2}
    network = {"name": "kd_lightning.models.MultiExitNetwork", "kwargs": given, "weights": f"{folder.path}#peer=net_2"}
    teacher = [f"--model.teacher.init_args.network={json.dumps(network)}", "--model.teacher.init_args.check=false"]
    taught = figures_of(fit(CONFIGS / "offline/kd.yaml", "taught", *teacher, "--trainer.max_epochs=1"))
    assert taught["test/teacher_top1"] == pytest.approx(figures["test/net_2_top1"])


def test_faults_are_one_message_and_code_2(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit(CONFIG, "exits", "--trainer.max_epochs=1")
    start = f"--model.student.weights={folder.path}#peer=net_1"
    fit(CONFIGS / "supervised/student.yaml", "r", start, code=2)
    assert "is an exit: build it as a MultiExitNetwork with only: 1, got CifarResNet" in capsys.readouterr().err
    fit(CONFIG, "r2", "--model.collaboration=DML", code=2)
    assert "DML needs at least 2 peers, got ['net']" in capsys.readouterr().err
