"""Real processes over gloo: a network whose exits learn from its deepest classifier."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow
SCRIPT = '''
"""Train a network with exits in float64 and write what each rank holds at the end."""
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn

from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.distillers import ONE, OnlineDistiller, Peer, Term, Window
from kd_lightning.losses import CrossEntropy, Hint, SoftTarget
from kd_lightning.models import MultiExitNetwork


class Net(nn.Module):
    """Two stages and no BatchNorm, which would see another batch on each rank."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 3, 1, 1), nn.Conv2d(4, 8, 3, 2, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.two(self.one(x).relu()).relu().mean(dim=(2, 3)))


devices, out = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
pl.seed_everything(3)
torch.manual_seed(0)
network = MultiExitNetwork(Net(), num_classes=10, in_chans=1, image_size=8)
for name, module in list(network.exits.named_modules()):
    if isinstance(module, nn.BatchNorm2d):
        network.exits.set_submodule(name, nn.Identity())
own = {"ce": Term(CrossEntropy(), teacher=None)}
exits = {
    "ce": Term(CrossEntropy(), Window(1.0, end=1), teacher=None), "kd": Term(SoftTarget(3.0), Window(0.5, end=1)),
    "hint": Term(Hint("linear"), 0.1, student="embedding", teacher="embedding"),
}
peers = {"net": Peer(network.double(), criteria=own, branch_criteria=exits)}
module = OnlineDistiller(peers, ONE(), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01))
trainer = pl.Trainer(
    accelerator="cpu", devices=devices, strategy="auto" if devices == 1 else "ddp", precision="64-true", max_epochs=2,
    logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    default_root_dir=str(out), gradient_clip_val=1.0,
)
trainer.fit(module, DigitsDataModule(global_batch_size=200, eval_batch_size=67, val_fraction=0.101))
figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
torch.save({"state": module.state_dict(), "figures": figures}, out / f"{devices}-{trainer.global_rank}.pt")
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each rank left."""
    out = tmp_path_factory.mktemp("ddp")
    (out / "script.py").write_text(SCRIPT)
    environment = {key: value for key, value in os.environ.items() if key != "PL_GLOBAL_SEED"}
    for devices in "12":
        command = [sys.executable, str(out / "script.py"), devices, str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    return out


def left(folder: Path, devices: int, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / f"{devices}-{rank}.pt")
    return found


# In the second epoch nothing reaches the exits' classifiers: no rank waits for them, and no weight decay moves them.
def test_two_ranks_equal_one_process(folder: Path) -> None:
    alone = left(folder, 1, 0)
    assert "student.networks.net.exits.1.fc.weight" in alone["state"]
    for rank in (0, 1):
        both = left(folder, 2, rank)
        assert both["state"].keys() == alone["state"].keys()
        for key, value in alone["state"].items():
            torch.testing.assert_close(both["state"][key], value, rtol=1e-7, atol=1e-9, msg=f"{rank} {key}")
        names = ("train/net_ce", "train/net_1_hint", "val/net_1_top1", "val/net_ensemble_top1", "val/top1")
        for name in names:
            assert both["figures"][name] == pytest.approx(alone["figures"][name], rel=1e-6), name
