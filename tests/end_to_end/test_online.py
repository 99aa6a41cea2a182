"""Peers by the command line: train, stop anywhere, resume, test, take one of them out."""

import csv
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.cli.commands import run
from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.models import Network, peer_weights
from kd_lightning.run_folder import RunFolder

CONFIGS = Path(__file__).parents[2] / "configs/digits/online"
SUPERVISED = CONFIGS.parent / "supervised/student.yaml"
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")
ALONE = ("--trainer.devices=1", "--trainer.strategy=auto")
SMALL = {"widths": [2, 2, 4, 8]}
Fit = Callable[..., RunFolder]
GoneAt = Callable[[int], AbstractContextManager[None]]


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Fits a configuration in a working folder of its own."""
    monkeypatch.chdir(tmp_path)

    def fitted(config: Path, name: str, *options: str, code: int = 0) -> RunFolder:
        line = ["fit", "--config", str(config), "--experiment", "e", "--run", name, *QUIET, *ALONE, *options]
        assert run(line) == code
        return RunFolder(Path("runs/e") / name)

    return fitted


def kept(folder: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder.last, weights_only=True)
    return found


def rows_of(folder: RunFolder) -> list[dict[str, str]]:
    with folder.metrics.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("name", "step", "options"),
    [
        ("dml", 14, ["--checkpoints.every_steps=4", "--trainer.gradient_clip_val=0.5"]),
        ("kdcl", 17, ["--model.collaboration.init_args.ensemble=linear"]),
        ("one", 14, ["--checkpoints.every_steps=3"]),
        # Stopped between two exchanges: what the peers learn from is older than what the checkpoint has of them.
        ("codistillation", 16, ["--checkpoints.every_steps=5", "--model.collaboration.init_args.every=7"]),
    ],
)
def test_resumed_equals_uninterrupted(fit: Fit, gone_at: GoneAt, name: str, step: int, options: Sequence[str]) -> None:
    options = ["--trainer.max_epochs=2", "--trainer.log_every_n_steps=4", *options]
    if name == "codistillation":
        options += ["--model.criteria.kd.weight=1.0"]
    whole = fit(CONFIGS / f"{name}.yaml", "whole", *options)
    with gone_at(step):
        fit(CONFIGS / f"{name}.yaml", "stopped", *options)
    stopped = RunFolder(Path("runs/e/stopped"))
    assert run(["resume", str(stopped.path)]) == 0
    mine, its = (kept(folder)["state_dict"] for folder in (whole, stopped))
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[key], its[key]) for key in mine)
    assert rows_of(whole) == rows_of(stopped)
    assert kept(whole)["global_step"] == 20  # optimizer updates, whatever the number of peers


def test_an_average_of_the_peers_resumes_too(fit: Fit, gone_at: GoneAt) -> None:
    average = '--trainer.callbacks=[{"class_path": "kd_lightning.callbacks.StudentEMA", "init_args": {"decay": 0.9}}]'
    options = ["--trainer.max_epochs=2", "--checkpoints.every_steps=4", average]
    whole = fit(CONFIGS / "dml.yaml", "whole", *options)
    with gone_at(15):
        fit(CONFIGS / "dml.yaml", "stopped", *options)
    assert run(["resume", "runs/e/stopped"]) == 0
    ours, its = (kept(folder)["ema"] for folder in (whole, RunFolder(Path("runs/e/stopped"))))
    assert {key.split(".")[2] for key in ours if key.startswith("module.networks.")} == {"a", "b"}
    assert all(torch.equal(ours[key], its[key]) for key in ours)


def figures_of(folder: RunFolder) -> dict[str, Any]:
    assert run(["test", str(folder.path), *QUIET]) == 0
    found: dict[str, Any] = json.loads(folder.results.read_text())
    return found


def test_each_peer_is_reported_and_is_what_is_taken_out(fit: Fit) -> None:
    folder = fit(CONFIGS / "dml.yaml", "dml", "--trainer.max_epochs=3")
    last = rows_of(folder)[-1]
    for column in ("train/a_ce", "train/b_kd", "val/top1", "val/a_top1", "val/b_top1", "val/agreement"):
        assert last[column], column
    figures = figures_of(folder)
    data = DigitsDataModule()
    data.setup()
    batches = list(data.test_dataloader())
    for name in "ab":
        network = Network("cifar_resnet8", SMALL, weights=f"{folder.path}#peer={name}").build(10, 1).eval()
        with torch.no_grad():
            right = sum(int((network(batch.image).argmax(1) == batch.target).sum()) for batch in batches)
        assert figures[f"test/{name}_top1"] == pytest.approx(right / sum(len(batch) for batch in batches))
    best = max("ab", key=lambda name: float(last[f"val/{name}_top1"]))
    checkpoint = kept(folder)
    assert torch.equal(peer_weights(checkpoint, "best")["fc.weight"], peer_weights(checkpoint, best)["fc.weight"])


def test_a_branch_is_a_plain_network_that_another_run_starts_from(fit: Fit) -> None:
    folder = fit(CONFIGS / "one.yaml", "one", "--trainer.max_epochs=2")
    figures = figures_of(folder)
    assert figures["test/top1"] == figures["test/one_top1"]  # the gated ensemble
    start = f"--model.student.weights={folder.path}#peer=one_2"
    plain = fit(SUPERVISED, "plain", start, "--trainer.max_epochs=1", "--model.optimizer.init_args.lr=0")
    weights = peer_weights(kept(folder), "one_2")
    found = {key.removeprefix("student."): value for key, value in kept(plain)["state_dict"].items()}
    parameters = [name for name, _ in Network("cifar_resnet8", SMALL).build(10, 1).named_parameters()]
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in parameters)


def test_a_checkpoint_does_not_override_what_is_stated(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit(CONFIGS / "dml.yaml", "dml", "--trainer.max_epochs=1")
    again = ["--trainer.max_epochs=2", f"--ckpt_path={folder.last}", "--model.init_args.optimizer.init_args.lr=0.7"]
    fit(CONFIGS / "dml.yaml", "again", *again, code=2)
    assert "lr: 0.7 here, 0.2 in the checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (
            "one",
            ['--model.peers.one.network.kwargs={"network": {"name": "cifar_resnet8"}, "at": "stages.9"}'],
            "at must be a submodule of CifarResNet",
        ),
        ("one", ["--model.collaboration=DML"], "DML needs at least 2 peers, got ['one']"),
        ("kdcl", ["--model.peers.b.view=third"], "peer b looks at the view 'third'"),
    ],
)
def test_faults_are_one_message_and_code_2(
    fit: Fit, capsys: pytest.CaptureFixture[str], config: str, options: Sequence[str], message: str
) -> None:
    fit(CONFIGS / f"{config}.yaml", "r", *options, code=2)
    assert message in capsys.readouterr().err
