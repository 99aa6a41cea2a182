"""What W&B is told beside the figures, by a run that only takes it down."""

import hashlib
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import WandbLogger
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kd_lightning.callbacks import Checkpoints, MetricsFile, StudentEMA
from kd_lightning.callbacks.wandb_report import WandbReport, hashes
from kd_lightning.callbacks.wandb_tables import image_table, reliability_plot, soft_target
from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.distillers import DML, Classifier, OfflineDistiller, OnlineDistiller, Peer, Term
from kd_lightning.distillers.calibration import binned
from kd_lightning.distillers.notable_images import Notable
from kd_lightning.losses import CrossEntropy, SoftTarget
from kd_lightning.models import EnsembleTeacher, FrozenTeacher, MovingAverageTeacher, Network, save_weights
from kd_lightning.models.weights import fingerprint
from kd_lightning.run_folder import RunFolder


class Run:
    """Takes down what it is told."""

    id = "e-r"

    def __init__(self) -> None:
        self.summary: dict[str, float] = {}
        self.logged: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.artifacts: dict[str, dict[str, Path]] = {}

    def log(self, values: dict[str, Any]) -> None:
        self.logged |= values

    def log_artifact(self, artifact: Any, aliases: list[str]) -> None:
        assert (artifact.name, artifact.type) == ("model-e-r", "model")
        files = {name: Path(entry.local_path) for name, entry in artifact.manifest.entries.items()}
        self.artifacts |= dict.fromkeys(aliases, files)


class Noted(WandbLogger):
    """Lightning's logger, whose configuration is a plain dict."""

    def log_hyperparams(self, params: Any) -> None:
        self.experiment.config.update(params)


@pytest.fixture(autouse=True)
def data_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb-data"))


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def distiller(teacher: nn.Module) -> OfflineDistiller:
    criteria = {"ce": Term(CrossEntropy(), teacher=None), "kd": Term(SoftTarget())}
    return OfflineDistiller(linear(), FrozenTeacher(teacher, check=False), criteria, sgd)


def trainer_of(
    folder: Path, report: WandbReport, *callbacks: pl.Callback, logger: Any = None, **options: Any
) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        **{"max_epochs": 2, **options},
        logger=Noted(experiment=Run()) if logger is None else logger,
        callbacks=[report, *callbacks, *Checkpoints().callbacks(RunFolder(folder), True)],
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def test_after_a_training_both_headlines_and_both_checkpoints_are_told(tmp_path: Path) -> None:
    teacher = linear()
    module, trainer = distiller(teacher), trainer_of(tmp_path, WandbReport())
    trainer.fit(module, DigitsDataModule(val_fraction=0.1))
    run: Run = trainer.logger.experiment  # type: ignore[union-attr]
    best = trainer.checkpoint_callbacks[0].best_model_score  # type: ignore[attr-defined]
    last = trainer.callback_metrics["val/top1"]
    assert run.summary == {"val/top1.best": float(best), "val/top1.last": float(last)}
    assert run.config == {
        "teachers": {"teacher": {"weights": fingerprint(teacher), "dtype": "None", "classes": "None"}}
    }
    assert {alias: sorted(files) for alias, files in run.artifacts.items()} == {
        "best": ["best.ckpt", "student.safetensors"],
        "last": ["last.ckpt", "student.safetensors"],
    }
    student = load_file(run.artifacts["last"]["student.safetensors"])
    assert module.student is not None
    assert student.keys() == module.student.state_dict().keys()
    assert all(torch.equal(value, student[key]) for key, value in module.student.state_dict().items())
    for alias, file in {"best": "best.ckpt", "last": "last.ckpt"}.items():
        own = (tmp_path / "checkpoints" / file).read_bytes()
        assert hashlib.sha256(run.artifacts[alias][file].read_bytes()).digest() == hashlib.sha256(own).digest()


@pytest.mark.parametrize("evaluate", [True, False])
def test_the_student_is_the_one_that_is_evaluated(evaluate: bool, tmp_path: Path) -> None:
    average = StudentEMA(0.5, evaluate)
    module, trainer = Classifier(linear(), sgd), trainer_of(tmp_path, WandbReport(), average)
    trainer.fit(module, DigitsDataModule(val_fraction=0.1))
    assert average.average is not None
    assert module.student is not None
    expected = average.average.module if evaluate else module.student
    run: Run = trainer.logger.experiment  # type: ignore[union-attr]
    found = load_file(run.artifacts["last"]["student.safetensors"])
    assert all(torch.equal(value, found[key]) for key, value in expected.state_dict().items())


def test_each_peer_has_a_file_that_its_plain_network_takes(tmp_path: Path) -> None:
    peers = {"a": Peer(linear()), "b": Peer(linear())}
    criteria = {"ce": Term(CrossEntropy(), teacher=None), "kd": Term(SoftTarget())}
    module, trainer = OnlineDistiller(peers, DML(), sgd, criteria), trainer_of(tmp_path, WandbReport())
    trainer.fit(module, DigitsDataModule(val_fraction=0.1))
    run: Run = trainer.logger.experiment  # type: ignore[union-attr]
    assert sorted(run.artifacts["last"]) == ["last.ckpt", "student-a.safetensors", "student-b.safetensors"]
    for name in peers:
        plain, trained = linear(), module.student.networks[name].state_dict()  # type: ignore[union-attr, index]
        plain.load_state_dict(load_file(run.artifacts["last"][f"student-{name}.safetensors"]))
        assert all(torch.equal(value, trained[key]) for key, value in plain.state_dict().items())


def test_the_last_figure_may_be_of_before_the_training_was_resumed(tmp_path: Path) -> None:
    summaries = []
    for epochs, checkpoint in ((2, None), (3, tmp_path / "checkpoints/last.ckpt")):
        logger, options = Noted(experiment=Run()), {"max_epochs": epochs, "check_val_every_n_epoch": 2}
        trainer = trainer_of(tmp_path, WandbReport(), logger=[MetricsFile(tmp_path / "m.csv"), logger], **options)
        trainer.fit(Classifier(linear(), sgd), DigitsDataModule(val_fraction=0.1), ckpt_path=checkpoint)
        summaries.append(logger.experiment.summary)
    assert "val/top1" not in trainer.callback_metrics
    assert summaries[0].keys() == {"val/top1.best", "val/top1.last"}
    assert summaries[1] == pytest.approx(summaries[0])


def test_without_artifacts_no_checkpoint_is_told(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, WandbReport(artifacts=False))
    trainer.fit(Classifier(linear(), sgd), DigitsDataModule(val_fraction=0.1))
    run: Run = trainer.logger.experiment  # type: ignore[union-attr]
    assert run.artifacts == {}
    assert run.summary.keys() == {"val/top1.best", "val/top1.last"}


def test_a_test_shows_images_and_calibration(tmp_path: Path) -> None:
    module, trainer = distiller(linear()), trainer_of(tmp_path, WandbReport())
    data = DigitsDataModule(val_fraction=0.1, eval_batch_size=100)
    trainer.test(module, data)
    run: Run = trainer.logger.experiment  # type: ignore[union-attr]
    table = run.logged["test/images"]
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.data]
    missed = [row for row in rows if row["shown as"] == "missed"]
    assert 0 < len(missed) <= 24
    assert all(row["teacher"] == row["label"] != row["student"] for row in missed)
    assert len(rows) - len(missed) == 12
    labels: dict[int, int] = {}
    for batch in data.test_dataloader():
        labels |= dict(zip(batch.index.tolist(), batch.target.tolist(), strict=True))
    assert {row["row"]: int(row["label"]) for row in rows}.items() <= labels.items()
    chart = run.logged["test/reliability"]
    lines = {line for _, line, _ in chart.table.data}
    assert lines == {"calibrated", "student", "teacher"}


def test_without_wandb_nothing_is_told(tmp_path: Path) -> None:
    report = WandbReport()
    trainer = trainer_of(tmp_path, report, logger=False)
    trainer.fit(Classifier(linear(), sgd), DigitsDataModule(val_fraction=0.1))
    trainer.test(ckpt_path=None, model=Classifier(linear(), sgd), datamodule=DigitsDataModule())
    assert report._images is None


class Foreign(pl.LightningModule):
    """Somebody else's module."""

    def test_step(self, batch: Any, batch_idx: int) -> Tensor:
        return torch.zeros(())


def test_a_module_that_is_no_distiller_is_left_alone(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, WandbReport())
    trainer.test(Foreign(), DataLoader(TensorDataset(torch.zeros(2, 1))), verbose=False)
    assert trainer.logger.experiment.logged == {}  # type: ignore[union-attr]


def test_hashes_are_those_of_the_frozen_ones(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    save_weights(linear(), path)
    network = Network("torch.nn.Linear", {"in_features": 64, "out_features": 10}, weights=str(path))
    module = linear()
    found = hashes(EnsembleTeacher({"file": FrozenTeacher(network), "module": FrozenTeacher(module)}))
    assert found["file"]["weights"].startswith(hashlib.sha256(path.read_bytes()).hexdigest())
    assert found["module"]["weights"] == fingerprint(module)
    assert hashes(MovingAverageTeacher()) == hashes(None) == {}


def test_a_soft_target_is_its_largest_probabilities() -> None:
    logits = torch.tensor([0.1, 0.2, 0.7]).log()
    assert soft_target(logits, 1.0, ["a", "b", "c"]) == "c 0.70, b 0.20, a 0.10"
    flat = torch.tensor([0.1, 0.2, 0.7]).pow(0.25)
    assert soft_target(logits, 4.0, "abc").startswith(f"c {flat[2] / flat.sum():.2f}, b")
    assert soft_target(torch.zeros(9), 1.0, "abcdefghi").count(",") == 4


def test_a_table_has_a_row_for_each_image() -> None:
    student, teacher = torch.tensor([0.0, 2.0]), torch.tensor([3.0, 0.0])
    image = torch.randint(256, (3, 8, 8), dtype=torch.uint8)
    table = image_table({"missed": [Notable(7, image, 0, student, teacher)], "least sure": []}, ["cat", "dog"])
    (row,) = table.data
    assert row[:2] == ["missed", 7]
    assert row[3:6] == ["cat", "dog", "cat"]
    assert row[6:] == [soft_target(z, t, ["cat", "dog"]) for z in (student, teacher) for t in (1.0, 4.0)]
    picture = torch.from_numpy(np.array(row[2].image))
    assert torch.equal(picture.permute(2, 0, 1), image)


def test_without_a_teacher_its_cells_are_empty() -> None:
    notable = Notable(7, torch.zeros(1, 8, 8, dtype=torch.uint8), 0, torch.tensor([0.0, 2.0]), None)
    (row,) = image_table({"missed": [notable]}, ["cat", "dog"]).data
    assert row[5] is None
    assert row[-2:] == [None, None]


def test_the_plot_goes_through_the_filled_bins() -> None:
    sums = binned(torch.tensor([0.5, 0.6, 0.9]), torch.tensor([True, False, True]), bins=2)
    points = [point for point in reliability_plot({"student": sums}).table.data if point[1] == "student"]
    assert points == [[pytest.approx(2 / 3), "student", pytest.approx(2 / 3)]]
