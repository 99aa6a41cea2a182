"""Two real processes over gloo: adapters, a learnt temperature and a memory bank end as those of one process."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow
SCRIPT = '''
"""Distil for three epochs in float64 by losses that learn or remember; write what each rank holds at the end."""
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn

from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.distillers import OfflineDistiller, Term, Window
from kd_lightning.losses import CRD, VID, CrossEntropy, CurriculumTemperature, Hint, SoftTarget
from kd_lightning.models import FrozenTeacher


class Net(nn.Module):
    """No BatchNorm, which would see another batch on each rank."""

    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU())
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.body(x))


devices, out = int(sys.argv[1]), Path(sys.argv[2])
pl.seed_everything(3)
torch.set_num_threads(1)
torch.manual_seed(0)
teacher = FrozenTeacher(Net(16), check=False)
torch.manual_seed(1)
criteria = {
    "ce": Term(CrossEntropy(), 1.0, teacher=None),
    "hint": Term(Hint("linear"), Window(1.0, end=2), student="body", teacher="body"),
    "vid": Term(VID(), Window(0.5, start=1), student="body", teacher="body"),
    "crd": Term(CRD(dim=6, negatives=12), Window(0.1, start=1)),
    "kd": Term(CurriculumTemperature(SoftTarget(), epochs=2), 0.5),
}
module = OfflineDistiller(
    Net(8), teacher, criteria, lambda p: torch.optim.SGD(p, 0.02, momentum=0.9, weight_decay=0.01)
)
data = DigitsDataModule(global_batch_size=200, eval_batch_size=67, val_fraction=0.101)
trainer = pl.Trainer(
    accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", precision="64-true", max_epochs=3,
    logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    limit_val_batches=0, default_root_dir=str(out),
)
trainer.fit(module, data)
torch.save(module.state_dict(), out / f"{devices}-{trainer.global_rank}.pt")
'''


def flat(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A state dict with the entries of extra states beside the others."""
    found: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        found |= {f"{key}.{name}": part for name, part in value.items()} if isinstance(value, dict) else {key: value}
    return found


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """The state of one process, and of each of two."""
    out = tmp_path_factory.mktemp("ddp")
    (out / "script.py").write_text(SCRIPT)
    environment = {key: value for key, value in os.environ.items() if key != "PL_GLOBAL_SEED"}
    for devices in ("1", "2"):
        command = [sys.executable, str(out / "script.py"), devices, str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    return {name: flat(torch.load(Path(out / f"{name}.pt"))) for name in ("1-0", "2-0", "2-1")}


def test_students_adapters_and_banks_equal_those_of_one_process(states: dict[str, dict[str, torch.Tensor]]) -> None:
    alone = states["1-0"]
    assert {"criteria.losses.crd._extra_state.bank", "criteria.losses.crd._extra_state.constants"} <= alone.keys()
    assert {"criteria.losses.kd.theta", "criteria.losses.vid.log_scales.0"} <= alone.keys()
    for rank in ("2-0", "2-1"):
        assert states[rank].keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(states[rank][key], value, rtol=1e-7, atol=1e-9, msg=f"{rank} {key}")


def test_all_of_them_learnt(states: dict[str, dict[str, torch.Tensor]]) -> None:
    alone = states["1-0"]
    assert alone["criteria.losses.kd.theta"] != 1
    assert alone["criteria.losses.vid.log_scales.0"].unique().numel() > 1
    norms = alone["criteria.losses.crd._extra_state.bank"].norm(dim=2)
    seen = (norms - 1).abs() < 1e-6
    assert seen.float().mean() > 0.85  # the rows of the training split; those of the validation split keep their start
    assert not seen.all()
