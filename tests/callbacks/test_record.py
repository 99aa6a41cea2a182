"""The record of a run: what its three files hold."""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kd_lightning.callbacks import MetricsFile, RunRecord
from kd_lightning.callbacks.record import differences
from kd_lightning.run_folder import PACKAGES, RunFolder

CONFIG = "seed_everything: 3\ntrainer:\n  max_epochs: 2\n"


class Toy(pl.LightningModule):
    """Logs one figure of the test, and one that is none of the test's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.layer(batch[0]).mean()  # type: ignore[no-any-return]

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/top1", 0.25)
        self.log("other", 1.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Listening(DummyLogger):
    """A logger that remembers the configuration."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[dict[str, Any]] = []

    def log_hyperparams(self, params: dict[str, Any]) -> None:  # type: ignore[override]
        self.told.append(params)


def trainer_of(folder: RunFolder, *callbacks: pl.Callback, logger: Any = False) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        default_root_dir=folder.path,
        max_epochs=2,
        callbacks=list(callbacks),
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture
def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.ones(3, 1)), batch_size=1)


def test_the_configuration_is_written_before_a_step(folder: RunFolder, loader: DataLoader[Any]) -> None:
    class Looking(pl.Callback):
        found = ""

        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.found = folder.config.read_text()

    looking = Looking()
    trainer_of(folder, RunRecord(folder, CONFIG, 3), looking).fit(Toy(), loader)
    assert looking.found == CONFIG


def test_a_resumed_run_keeps_its_configuration(folder: RunFolder, loader: DataLoader[Any]) -> None:
    folder.path.mkdir()
    folder.config.write_text(CONFIG)
    trainer_of(folder, RunRecord(folder, "trainer: {}\n", 3)).fit(Toy(), loader)
    assert folder.config.read_text() == CONFIG


def test_the_record_of_a_finished_training(folder: RunFolder, loader: DataLoader[Any]) -> None:
    trainer_of(folder, RunRecord(folder, CONFIG, 3)).fit(Toy(), loader)
    record = json.loads(folder.record.read_text())
    assert set(record) == {"seed", "epochs", "devices", "seconds", "versions", "commit", "global_step"}
    assert (record["seed"], record["epochs"], record["devices"], record["global_step"]) == (3, 2, 1, 6)
    assert set(record["versions"]) == set(PACKAGES)
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert record["seconds"] >= 0
    assert not folder.results.exists()


def test_a_training_that_fails_has_no_record(folder: RunFolder, loader: DataLoader[Any]) -> None:
    class Failing(Toy):
        def on_train_epoch_end(self) -> None:
            raise ArithmeticError("not finite")

    with pytest.raises(ArithmeticError):
        trainer_of(folder, RunRecord(folder, CONFIG, 3)).fit(Failing(), loader)
    assert folder.config.exists()
    assert not folder.record.exists()


def test_the_figures_of_a_test(folder: RunFolder, loader: DataLoader[Any]) -> None:
    trainer_of(folder, RunRecord(folder, CONFIG, 3)).test(Toy(), loader, verbose=False)
    results = json.loads(folder.results.read_text())
    subject = {"checkpoint": "", "checkpoint_sha256": None, "images": 0, "stated_otherwise": []}
    assert set(results) == {"test/top1", "seed", "epochs", "devices", "seconds", "versions", "commit", *subject}
    assert {key: results[key] for key in subject} == subject
    assert results["test/top1"] == 0.25
    assert not folder.record.exists()


def test_what_a_test_states_otherwise_than_its_run() -> None:
    run = {"class_path": "A", "init_args": {"root": "data", "views": {"small": 2}, "mean": [0.5, 0.4], "workers": 4}}
    test = {"class_path": "A", "init_args": {"root": "/mnt", "views": {"small": 3}, "mean": [0.5, 0.4], "crop": 0.9}}
    assert list(differences(run, run, "data")) == []
    assert list(differences(test, run, "data")) == ["data.init_args.crop", "data.init_args.views.small"]
    assert list(differences(None, run, "data")) == ["data"]


def test_other_loggers_hear_the_whole_configuration_of_a_fit(folder: RunFolder, loader: DataLoader[Any]) -> None:
    listening = Listening()
    trainer_of(folder, RunRecord(folder, CONFIG, 3), logger=[MetricsFile(folder.metrics), listening]).fit(Toy(), loader)
    (told,) = listening.told
    assert {key: told[key] for key in yaml.safe_load(CONFIG)} == yaml.safe_load(CONFIG)
    assert set(told) == {"seed_everything", "trainer", "versions", "commit"}
    quiet = Listening()
    trainer_of(folder, RunRecord(folder, CONFIG, 3), logger=quiet).test(Toy(), loader, verbose=False)
    assert quiet.told == []


def test_a_training_from_the_start_forgets_an_earlier_attempt(folder: RunFolder, loader: DataLoader[Any]) -> None:
    folder.path.mkdir()
    MetricsFile(folder.metrics).log_metrics({"train/loss": 1.0}, step=2)
    trainer_of(folder, RunRecord(folder, CONFIG, 3), logger=MetricsFile(folder.metrics)).fit(Toy(), loader)
    assert MetricsFile(folder.metrics).rows == []
