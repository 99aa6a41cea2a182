"""The card of a run: what it says at the start, at the end, and after a test."""

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kd_lightning.callbacks import RunCard
from kd_lightning.callbacks.run_card import drawn, next_commands
from kd_lightning.cli.commands import run
from kd_lightning.cli.quiet import quiet
from kd_lightning.distillers import DML, BornAgainDistiller, Classifier, OfflineDistiller, OnlineDistiller, Peer, Term
from kd_lightning.losses import CrossEntropy, SoftTarget
from kd_lightning.models import EnsembleTeacher, FrozenTeacher, MovingAverageTeacher, Network
from kd_lightning.run_folder import RunFolder

STUDENT = Path(__file__).parents[2] / "configs/digits/supervised/student.yaml"
SGD: Any = partial(torch.optim.SGD, lr=0.1)
TRAINER: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}
Rows = dict[str, str]


class Says(nn.Module):
    """Answers the class that the first pixel says, if it is told to; 2 parameters for each class."""

    def __init__(self, right: bool = True, num_classes: int = 4) -> None:
        super().__init__()
        self.head = nn.Linear(1, num_classes)
        self.right, self.classes = right, num_classes

    def forward(self, image: Tensor) -> Tensor:
        known = nn.functional.one_hot(image[:, 0, 0, 0].long().clamp(0, self.classes - 1), self.classes)
        logits: Tensor = self.head(image[:, 0, 0, :1]) + (50.0 * known if self.right else 0)
        return logits


class Foreign(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.layer(batch[0]).square().mean()  # type: ignore[no-any-return]

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("accuracy", 0.123456)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def loader() -> DataLoader[Any]:
    target = torch.arange(40) % 4
    return DataLoader(TensorDataset(target.float()[:, None, None, None].expand(40, 1, 2, 2), target), batch_size=8)


def terms() -> dict[str, Term]:
    return {"ce": Term(CrossEntropy(), weight=0.1, teacher=None), "kd": Term(SoftTarget(4.0), weight=0.9)}


def tables(caplog: pytest.LogCaptureFixture) -> Iterator[tuple[str, Rows]]:
    """Title and rows of each card that the log shows."""
    for record in caplog.records:
        lines = record.getMessage().splitlines()
        if record.module == "run_card":
            cells = [line.strip("│").split("│") for line in lines if line.startswith("│")]
            yield lines[0].strip(), {cell[0].strip(): cell[1].strip() for cell in cells}


def fitted(module: pl.LightningModule, loader: DataLoader[Any], card: RunCard, epochs: int = 1) -> pl.Trainer:
    trainer = pl.Trainer(max_epochs=epochs, callbacks=[card], **TRAINER)
    trainer.fit(module, loader)
    return trainer


def test_the_card_of_a_distillation_names_both_networks_the_formula_and_the_examination(
    loader: DataLoader[Any], caplog: pytest.LogCaptureFixture
) -> None:
    module = OfflineDistiller(Says(False), FrozenTeacher(Says()), terms(), SGD, num_classes=4)
    fitted(module, loader, RunCard())
    (title, rows), (_, end) = tables(caplog)
    assert title == "OfflineDistiller"
    assert rows == {
        "student": "Says, 8 parameters",
        "teacher": "Says, 8 parameters, top-1 1.0000 on 40 images",
        "loss": "0.1 · CrossEntropy + 0.9 · SoftTarget(T=4)",
        "data": "TensorDataset, 40 training images, 4 classes",
        "length": "1 epoch of 5 batches, 8 images a step",
        "devices": "1 x cpu, 32-true",
        "results": "none are kept",
    }
    assert set(end) == {"took"}


def test_names_and_formula_are_those_of_the_configuration(
    loader: DataLoader[Any], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    loss = {"class_path": "kd_lightning.losses.CrossEntropy", "init_args": {"label_smoothing": 0.1}}
    student = {"name": "mine.Says", "kwargs": {"right": True, "depth": [1, 2]}}
    model = {"class_path": "kd_lightning.distillers.Classifier", "init_args": {"student": student, "loss": loss}}
    fitted(
        Classifier(Says(), SGD, num_classes=4),
        loader,
        RunCard(RunFolder(tmp_path), yaml.safe_dump({"model": model}, sort_keys=False)),
    )
    (_, rows), _ = tables(caplog)
    assert rows["student"] == "mine.Says(right=true, depth=[1, 2]), 8 parameters"
    assert rows["loss"] == "CrossEntropy(label_smoothing=0.1)"
    assert "teacher" not in rows


def test_every_member_of_an_ensemble_is_named(loader: DataLoader[Any], caplog: pytest.LogCaptureFixture) -> None:
    teacher = EnsembleTeacher({"one": FrozenTeacher(Says()), "two": FrozenTeacher(Says(False), check=False)})
    fitted(OfflineDistiller(Says(False), teacher, terms(), SGD, num_classes=4), loader, RunCard())
    (_, rows), _ = tables(caplog)
    assert rows["teacher"] == "EnsembleTeacher"
    assert rows["· one"] == "Says, 8 parameters, top-1 1.0000 on 40 images"
    assert rows["· two"] == "Says, 8 parameters"


def test_a_teacher_without_a_network_is_known_by_its_class(
    loader: DataLoader[Any], caplog: pytest.LogCaptureFixture
) -> None:
    fitted(OfflineDistiller(Says(), MovingAverageTeacher(), terms(), SGD, num_classes=4), loader, RunCard())
    (_, rows), _ = tables(caplog)
    assert rows["teacher"] == "MovingAverageTeacher"


def test_peers_and_generations_say_who_teaches(
    loader: DataLoader[Any], caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the weights of the generations go
    peers = {"a": Peer(Says()), "b": Peer(Says(False))}
    fitted(OnlineDistiller(peers, DML(), SGD, terms(), num_classes=4), loader, RunCard())
    student = Network("cifar_resnet8", {"widths": [2, 2, 4, 8]})
    images = DataLoader(TensorDataset(torch.zeros(8, 1, 8, 8), torch.arange(8) % 4), batch_size=8)
    fitted(BornAgainDistiller(student, terms(), SGD, generations=2, num_classes=4), images, RunCard(), epochs=2)
    (_, online), _, (_, again), _ = tables(caplog)
    assert online["peer a"] == online["peer b"] == "Says, 8 parameters"
    assert online["teachers"] == "the peers, by DML"
    assert again["teachers"] == "the generation before, of 2"


def test_of_a_foreign_module_what_is_known_is_shown(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    loader = DataLoader(TensorDataset(torch.zeros(10, 3)), batch_size=4)
    trainer = pl.Trainer(max_steps=2, accumulate_grad_batches=3, callbacks=[RunCard()], **TRAINER)
    trainer.fit(Foreign(), loader)
    trainer.test(Foreign(), loader, verbose=False)
    (title, rows), _, (tested, figures) = tables(caplog)
    assert title == "Foreign"
    assert rows == {
        "module": "Foreign, 8 parameters",
        "data": "TensorDataset, 10 training images",
        "length": "at most 2 steps, 12 images a step",
        "devices": "1 x cpu, 32-true",
        "results": "none are kept",
    }
    assert (tested, figures) == ("tested", {"accuracy": "0.1235"})
    assert capsys.readouterr().out == ""


def test_a_card_is_shown_once_in_a_fit_and_again_in_the_next(
    loader: DataLoader[Any], caplog: pytest.LogCaptureFixture
) -> None:
    card = RunCard()
    for _ in range(2):
        fitted(Classifier(Says(), SGD, num_classes=4), loader, card, epochs=2)
    assert [title for title, _ in tables(caplog)] == ["Classifier", "trained"] * 2


def test_what_silences_the_log_silences_the_card(loader: DataLoader[Any], caplog: pytest.LogCaptureFixture) -> None:
    with quiet():
        fitted(Classifier(Says(), SGD, num_classes=4), loader, RunCard())
    assert list(tables(caplog)) == []


def test_figures_of_a_test_may_be_left_out(caplog: pytest.LogCaptureFixture) -> None:
    pl.Trainer(callbacks=[RunCard(figures=False)], **TRAINER).test(
        Foreign(), DataLoader(torch.zeros(2, 3)), verbose=False
    )
    assert list(tables(caplog)) == []


def test_a_card_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    shown = drawn("title", {"loss": "CrossEntropy + [red]x[/red] " * 5, "data": "x" * 90})
    assert max(map(len, shown.splitlines())) <= 40
    assert "[red]" in shown
    monkeypatch.setenv("COLUMNS", "400")
    assert max(map(len, drawn("title", {"loss": "x" * 300}).splitlines())) == 100


def test_the_next_commands_are_of_the_run() -> None:
    assert next_commands(RunFolder(Path("runs/e/r"))).splitlines() == [
        "  kd-lightning test runs/e/r",
        "  kd-lightning report runs/e/r",
        "  kd-lightning export runs/e/r --format onnx --output runs/e/r/onnx/student.onnx",
    ]
    assert next_commands(RunFolder(Path("r")), "a").endswith("--output r/onnx/student.onnx --part a")


# By the command line


def fit(*options: str) -> int:
    line = ["fit", "--config", str(STUDENT), "--experiment", "e", "--run", "r", "--trainer.max_epochs=2"]
    return run([*line, "--trainer.accelerator=cpu", *options])


def test_a_run_is_shown_from_its_start_to_its_test(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fit() == 0
    assert run(["test", "runs/e/r"]) == 0
    (_, start), (_, end), (_, figures) = tables(caplog)
    assert start["student"] == "cifar_resnet8(widths=[2, 2, 4, 8]), 1,384 parameters"
    assert start["data"] == "DigitsDataModule, 1,212 training images, 10 classes, 1 x 8 x 8"
    assert start["length"] == "2 epochs of 10 batches, 128 images a step"
    assert start["results"] == "runs/e/r"
    kept = yaml.safe_load((tmp_path / "runs/e/r/results.json").read_text())
    assert figures == {name: f"{value:.4f}" for name, value in kept.items() if name.startswith("test/")}
    rows = (tmp_path / "runs/e/r/metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("val/top1")
    top1 = [float(row.split(",")[column]) for row in rows[1:]]
    assert (end["val/top1"], end["best val/top1"]) == (f"{top1[-1]:.4f}", f"{max(top1):.4f}")
    assert re.fullmatch(r"[\d.,]+ s", end["took"])
    assert capsys.readouterr().out == ""  # neither bars, nor Lightning's summary and table
    caplog.clear()
    assert run(["test", "runs/e/r", "--verbose=false"]) == 0
    assert list(tables(caplog)) == []


def test_a_dry_run_has_a_card_and_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fit("--trainer.fast_dev_run=true") == 0
    (_, start), _ = tables(caplog)
    assert start["results"] == "none are kept"
    assert not any("kd-lightning test" in record.getMessage() for record in caplog.records)
    assert os.listdir(tmp_path) == []
