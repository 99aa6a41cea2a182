"""Two real processes over gloo: the same gradients, students and figures as one process on the same global batch."""

import csv
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

SCRIPT = '''
"""Distil for two epochs in float64, and write what each rank saw."""
import json, os, sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn

from kd_lightning.callbacks import MetricsFile, SafeCheckpointIO
from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.distillers import OfflineDistiller, Term, Window
from kd_lightning.losses import CrossEntropy, SoftTarget
from kd_lightning.models import FrozenTeacher


class Net(nn.Module):
    """No BatchNorm, and a layer that a tap reaches before the head."""

    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU())
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.body(x))


class Pull(nn.Module):
    """Pulls a feature of the student towards 1."""

    def forward(self, student, teacher, target):
        return ((student - 1) ** 2).mean(dim=1).mean()


class Watch(pl.Callback):
    def __init__(self):
        self.train, self.test, self.gradients = [], [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.train += batch.index.tolist()

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients.append({n: p.grad.tolist() for n, p in module.student.named_parameters() if p.grad is not None})

    def on_test_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        self.test += batch.index.tolist()


class Counted(SafeCheckpointIO):
    writes = 0

    def save_checkpoint(self, *args, **kwargs):
        self.writes += 1
        super().save_checkpoint(*args, **kwargs)


devices, out = int(sys.argv[1]), Path(sys.argv[2])
pl.seed_everything(3)
torch.set_num_threads(1)
torch.manual_seed(0)
teacher = FrozenTeacher(Net(32), check=False)
torch.manual_seed(1)
criteria = {
    "ce": Term(CrossEntropy(), Window(0.1, start=1)),
    "kd": Term(SoftTarget(4.0), Window(0.9, start=1)),
    "pull": Term(Pull(), Window(1.0, end=1), student="body", teacher=None),
}
module = OfflineDistiller(
    Net(8), teacher, criteria, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01)
)
# 1211 training samples in batches of 200: of the last 11 one rank has 6, the other 5; evaluation ends unevenly too
data = DigitsDataModule(global_batch_size=200, eval_batch_size=67, val_fraction=0.101)
watch, io = Watch(), Counted()
trainer = pl.Trainer(
    accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", precision="64-true", max_epochs=2,
    logger=MetricsFile(out / f"{devices}-{os.environ.get('LOCAL_RANK', 0)}.csv"), log_every_n_steps=3,
    callbacks=[watch, pl.callbacks.ModelCheckpoint(out / f"root{devices}" / "checkpoints", filename="last")],
    enable_progress_bar=False, enable_model_summary=False,
    plugins=[io], default_root_dir=str(out / f"root{devices}"),
)
trainer.fit(module, data)
student = {k: v.tolist() for k, v in module.student.state_dict().items()}
validated = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
tested = trainer.test(module, data, verbose=False)[0]
seen = {"train": watch.train, "test": watch.test, "gradients": watch.gradients, "student": student,
        "validated": validated, "tested": tested, "steps": trainer.global_step, "writes": io.writes}
(out / f"{devices}-{trainer.global_rank}.json").write_text(json.dumps(seen))
'''


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process saw, and what each of two saw."""
    out = tmp_path_factory.mktemp("ddp")
    (out / "script.py").write_text(SCRIPT)
    environment = {key: value for key, value in os.environ.items() if key != "PL_GLOBAL_SEED"}
    for devices in ("1", "2"):
        command = [sys.executable, str(out / "script.py"), devices, str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    seen = {name: json.loads((out / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1")}
    for name, one in seen.items():
        path = out / f"{name}.csv"
        one["metrics"] = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else None
    seen["1-0"]["checkpoints"], seen["2-0"]["checkpoints"] = (
        sorted(file.name for file in (out / f"root{devices}" / "checkpoints").iterdir()) for devices in (1, 2)
    )
    return seen


def assert_close(one: Any, other: Any) -> None:
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(
            torch.tensor(one[key], dtype=torch.float64),
            torch.tensor(other[key], dtype=torch.float64),
            rtol=0,
            atol=1e-10,
        )


def test_gradients_equal_those_of_one_process(seen: dict[str, Any]) -> None:
    alone, ranks = seen["1-0"]["gradients"], [seen["2-0"]["gradients"], seen["2-1"]["gradients"]]
    assert len(alone) == len(ranks[0]) == 14
    for step, gradients in enumerate(alone):
        assert_close(gradients, ranks[0][step])
        assert_close(gradients, ranks[1][step])


def test_what_no_active_term_reaches_has_no_gradient(seen: dict[str, Any]) -> None:
    for rank in seen.values():
        assert set(rank["gradients"][0]) == {"body.1.weight", "body.1.bias"}
        assert set(rank["gradients"][-1]) == {"body.1.weight", "body.1.bias", "head.weight", "head.bias"}


def test_students_are_identical(seen: dict[str, Any]) -> None:
    assert seen["2-0"]["student"] == seen["2-1"]["student"]
    assert_close(seen["1-0"]["student"], seen["2-0"]["student"])
    assert seen["1-0"]["steps"] == seen["2-0"]["steps"] == 14


def test_each_sample_is_seen_once_an_epoch(seen: dict[str, Any]) -> None:
    trained = sorted(seen["2-0"]["train"] + seen["2-1"]["train"])
    assert trained == sorted(seen["1-0"]["train"])
    assert trained == sorted(2 * sorted(set(trained)))
    assert len(set(trained)) == 1211
    assert sorted(seen["2-0"]["test"] + seen["2-1"]["test"]) == sorted(seen["1-0"]["test"]) == list(range(450))


def test_figures_equal_those_of_one_process(seen: dict[str, Any]) -> None:
    for kind in ("validated", "tested"):
        assert seen["2-0"][kind] == seen["2-1"][kind]
        assert seen["1-0"][kind] == pytest.approx(seen["2-0"][kind], abs=1e-6)
    assert {"test/top1", "test/teacher_top1", "test/agreement", "test/ece"} <= set(seen["1-0"]["tested"])


def test_only_the_first_rank_writes(seen: dict[str, Any]) -> None:
    assert seen["2-0"]["writes"] == seen["1-0"]["writes"] > 0
    assert seen["2-1"]["writes"] == 0
    assert seen["2-0"]["checkpoints"] == seen["1-0"]["checkpoints"] == ["last.ckpt"]
    assert seen["2-1"]["metrics"] is None


def test_the_logged_means_are_over_all_ranks(seen: dict[str, Any]) -> None:
    alone, ranks = seen["1-0"]["metrics"], seen["2-0"]["metrics"]
    assert len(alone) == len(ranks)
    for row, other in zip(alone, ranks, strict=True):
        figures, others = ({k: float(v) for k, v in each.items() if v} for each in (row, other))
        assert figures == pytest.approx(others, abs=1e-6)
    assert {"train/pull", "train/ce", "train/kd", "train/loss", "val/top1", "lr"} <= set(alone[0])
