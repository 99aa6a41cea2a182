"""Two real processes over gloo: a student with two heads ends as that of one process, also while one head rests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.slow
SCRIPT = '''
"""Distil for three epochs in float64; write what each rank holds at the end, and what it tested."""
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn

from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.distillers import DeiTDistiller, Term, Window
from kd_lightning.losses import CrossEntropy, HardLabel
from kd_lightning.models import FrozenTeacher, Network

devices, out = int(sys.argv[1]), Path(sys.argv[2])
pl.seed_everything(3)
torch.set_num_threads(1)
torch.manual_seed(0)
teacher = FrozenTeacher(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), check=False)
kwargs = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
criteria = {
    "ce": Term(CrossEntropy(), Window(0.5, end=2), teacher=None),
    "hard": Term(HardLabel(), Window(0.5, start=1)),
}
module = DeiTDistiller(
    Network("deit_tiny_distilled_patch16_224", kwargs=kwargs), teacher, criteria,
    lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
)
data = DigitsDataModule(global_batch_size=200, eval_batch_size=67, val_fraction=0.101)
trainer = pl.Trainer(
    accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", precision="64-true", max_epochs=3,
    logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    limit_val_batches=0, default_root_dir=str(out),
)
trainer.fit(module, data)
state = {key: value.clone() for key, value in module.student.state_dict().items()}
(figures,) = trainer.test(module, data, verbose=False)
torch.save({"state": state, "figures": figures}, out / f"{devices}-{trainer.global_rank}.pt")
'''


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, Tensor]]]:
    """What one process ends with, and each of two."""
    out = tmp_path_factory.mktemp("ddp")
    (out / "script.py").write_text(SCRIPT)
    environment = {key: value for key, value in os.environ.items() if key != "PL_GLOBAL_SEED"}
    for devices in ("1", "2"):
        command = [sys.executable, str(out / "script.py"), devices, str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    return {name: torch.load(Path(out / f"{name}.pt")) for name in ("1-0", "2-0", "2-1")}


def test_the_student_equals_that_of_one_process(ends: dict[str, dict[str, dict[str, Tensor]]]) -> None:
    alone = ends["1-0"]["state"]
    assert {"head.weight", "head_dist.weight", "dist_token"} <= alone.keys()
    for rank in ("2-0", "2-1"):
        for key, value in alone.items():
            torch.testing.assert_close(ends[rank]["state"][key], value, rtol=1e-7, atol=1e-9, msg=f"{rank} {key}")


def test_the_figures_of_both_heads_are_those_of_one_process(
    ends: dict[str, dict[str, dict[str, Tensor]]],
) -> None:
    figures = ends["1-0"]["figures"]
    assert figures["test/class_head_loss"] != figures["test/distillation_head_loss"]
    assert figures["test/agreement"] > 0.3  # with a teacher of noise
    for rank in ("2-0", "2-1"):
        assert ends[rank]["figures"].keys() == figures.keys()
        for name, value in figures.items():
            assert float(ends[rank]["figures"][name]) == pytest.approx(float(value), rel=1e-5), name
