"""Two real processes over gloo: generations end as those of one process, and go on where they stopped."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.models.weights import read_weights

pytestmark = pytest.mark.slow
SCRIPT = '''
"""Two generations of two epochs in float64, whole, and again from the boundary and from amid the second one."""
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn

from kd_lightning import trust
from kd_lightning.callbacks import SafeCheckpointIO, StudentEMA
from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.distillers import BornAgainDistiller, ShareCosineLR, Term
from kd_lightning.losses import DKPP, VID, CrossEntropy
from kd_lightning.models import Network


class Net(nn.Module):
    """No BatchNorm, which would see another batch on each rank; a buffer that each rank changes in its own way."""

    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU())
        self.head = nn.Linear(12, num_classes)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        if self.training:
            self.seen += x.sum()
        return self.head(self.body(x))


devices, out = int(sys.argv[1]), Path(sys.argv[2]) / sys.argv[1]
trust.allow(["__main__"])
torch.set_num_threads(1)


def fit(root, checkpoint=None):
    pl.seed_everything(3)
    criteria = {
        "dkpp": Term(DKPP()),
        "vid": Term(VID(), 0.1, student="body", teacher="body"),
    }
    first = {"ce": Term(CrossEntropy(), teacher=None)}
    module = BornAgainDistiller(
        Network("__main__.Net"), criteria, lambda p: torch.optim.SGD(p, 0.02, momentum=0.9), 2, first=first,
        scheduler=ShareCosineLR,
    )
    saving = pl.callbacks.ModelCheckpoint(root / "saved", "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer = pl.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", precision="64-true",
        max_epochs=4, logger=False, callbacks=[StudentEMA(0.9), saving], enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, default_root_dir=str(root), plugins=[SafeCheckpointIO()],
    )
    trainer.fit(module, DigitsDataModule(global_batch_size=200, val_fraction=0.101), ckpt_path=checkpoint)
    previous = {f"previous.{k}": v for k, v in module.succession.state()["previous"].items()}
    torch.save({**module.state_dict(), **previous}, root / f"rank-{trainer.global_rank}.pt")
    return trainer


trainer = fit(out)
if devices > 1:
    for epoch in (1, 2):
        trainer.strategy.barrier()
        fit(out / f"from-{epoch}", out / f"saved/epoch={epoch}.ckpt")
'''

State = dict[str, Any]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of one process, and of two."""
    folder = tmp_path_factory.mktemp("ddp")
    (folder / "script.py").write_text(SCRIPT)
    environment = {key: value for key, value in os.environ.items() if key != "PL_GLOBAL_SEED"}
    for devices in ("1", "2"):
        command = [sys.executable, str(folder / "script.py"), devices, str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    return folder


def state(path: Path) -> State:
    loaded: State = torch.load(path, weights_only=True)
    return loaded


def assert_close(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        if not key.endswith("seen"):
            torch.testing.assert_close(other[key], value, rtol=1e-7, atol=1e-9, msg=key)


def test_generations_equal_those_of_one_process(out: Path) -> None:
    for rank in (0, 1):
        assert_close(state(out / "1/rank-0.pt"), state(out / f"2/rank-{rank}.pt"))
    for generation in (0, 1):
        alone, both = (read_weights(out / devices / f"generations/{generation}.safetensors") for devices in "12")
        assert_close(alone, both)


def test_both_ranks_have_the_same_teacher_to_the_last_buffer(out: Path) -> None:
    first, second = (state(out / f"2/rank-{rank}.pt") for rank in (0, 1))
    kept = read_weights(out / "2/generations/0.safetensors")
    assert kept["seen"] != 0
    for key, value in kept.items():
        assert torch.equal(first[f"previous.{key}"], value), key
        assert torch.equal(second[f"previous.{key}"], value), key


@pytest.mark.parametrize("epoch", [1, 2])
def test_two_ranks_go_on_from_any_epoch(out: Path, epoch: int) -> None:
    for rank in (0, 1):
        whole, resumed = (state(path / f"rank-{rank}.pt") for path in (out / "2", out / f"2/from-{epoch}"))
        assert whole.keys() == resumed.keys()
        assert [key for key in whole if key != "student.seen" and not torch.equal(whole[key], resumed[key])] == []
