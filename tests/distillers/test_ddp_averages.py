"""Two real processes over gloo: the moving average, DINO's centre and the neighbours end as those of one process."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow
SCRIPT = '''
"""Train by DINO over a moving average for two epochs in float64; write what each rank holds at the end."""
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn

from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.datamodules.views import View
from kd_lightning.distillers import NearestNeighbours, OfflineDistiller, Term
from kd_lightning.losses import DINO, CrossEntropy
from kd_lightning.models import MovingAverageTeacher


class Net(nn.Module):
    """With BatchNorm only where it is asked for, since it sees another batch on each rank."""

    def __init__(self, norm):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12) if norm else nn.ReLU())
        self.head = nn.Linear(12, 10)

    def forward(self, x):
        return self.head(self.body(x))


devices, norm, out = int(sys.argv[1]), sys.argv[2] == "norm", Path(sys.argv[3])
pl.seed_everything(3)
torch.set_num_threads(1)
rank_of_its_own = int(__import__("os").environ.get("LOCAL_RANK", 0))
torch.manual_seed(rank_of_its_own if norm else 0)  # DDP takes the first rank's student; so must the average
criteria = {
    "ce": Term(CrossEntropy(), 0.5, teacher=None),
    "dino": Term(
        DINO(0.5, 0.2), student="logits", teacher="logits", views=["default", "second", "small"],
        teacher_views=["default", "second"],
    ),
}
module = OfflineDistiller(
    Net(norm), MovingAverageTeacher(0.9, "cosine"), criteria, lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    knn=NearestNeighbours(5, tap="body"),
)
views = {name: View(1, flip=False) for name in ("default", "second")} | {"small": View(1, flip=False, cutout=3)}
data = DigitsDataModule(global_batch_size=200, eval_batch_size=67, val_fraction=0.101, views=views)
trainer = pl.Trainer(
    accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", precision="64-true", max_epochs=2,
    logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    num_sanity_val_steps=0, default_root_dir=str(out),
)
trainer.fit(module, data)
held = {f"teacher.{k}": v for k, v in module.teacher.state().items()}
held |= {"centre": module.criteria.losses["dino"].centre, "knn": trainer.callback_metrics["val/knn_top1"]}
held |= {k: v for k, v in module.state_dict().items() if k.startswith("student.")}
torch.save(held, out / f"{sys.argv[2]}-{devices}-{trainer.global_rank}.pt")
'''


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What one process holds, and each of two; and each of two where BatchNorm and the starts differ."""
    out = tmp_path_factory.mktemp("ddp")
    (out / "script.py").write_text(SCRIPT)
    environment = {key: value for key, value in os.environ.items() if key != "PL_GLOBAL_SEED"}
    runs = [
        subprocess.Popen(
            [sys.executable, str(out / "script.py"), devices, norm, str(out)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for devices, norm in (("1", "plain"), ("2", "plain"), ("2", "norm"))
    ]
    try:
        errors = [each.communicate(timeout=200)[1] for each in runs]
    finally:
        for each in runs:
            each.kill()
    assert [each.returncode for each in runs] == [0, 0, 0], "\n".join(error[-3000:] for error in errors)
    names = ("plain-1-0", "plain-2-0", "plain-2-1", "norm-2-0", "norm-2-1")
    return {name: torch.load(Path(out / f"{name}.pt")) for name in names}


def test_averages_centre_and_neighbours_equal_those_of_one_process(states: dict[str, dict[str, Any]]) -> None:
    alone = states["plain-1-0"]
    assert {"centre", "knn", "teacher.head.weight", "student.head.weight"} <= alone.keys()
    for rank in ("plain-2-0", "plain-2-1"):
        for key, value in alone.items():
            torch.testing.assert_close(states[rank][key], value, rtol=1e-7, atol=1e-9, msg=f"{rank} {key}")
    assert not torch.equal(alone["teacher.head.weight"], alone["student.head.weight"])
    assert alone["centre"].abs().max() > 0
    assert 0.3 < alone["knn"] < 1


def test_the_average_is_the_same_on_all_ranks_also_with_batch_normalisation(states: dict[str, dict[str, Any]]) -> None:
    first, second = states["norm-2-0"], states["norm-2-1"]
    teacher = [key for key in first if key.startswith("teacher.") or key == "centre"]
    assert "teacher.body.2.running_mean" in teacher
    assert all(torch.equal(first[key], second[key]) for key in teacher)
