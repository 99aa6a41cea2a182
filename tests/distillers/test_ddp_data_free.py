"""Two real processes over gloo: one generator and one student, from different images, without unused parameters."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow
SCRIPT = '''
"""Distil without data in float64; write what each rank holds at the end, and the images that it saw."""
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn

from kd_lightning.datamodules import DigitsDataModule, NoTrainingImages
from kd_lightning.distillers import DataFreeDistiller, Term
from kd_lightning.distillers import synthesis
from kd_lightning.losses import Activation, Discrepancy, OneHot, SoftTarget
from kd_lightning.models import FrozenTeacher
from kd_lightning.models import generator
from kd_lightning.models.generator import GeneratorRecipe


class Net(nn.Module):
    """No BatchNorm, which would see another batch on each rank."""

    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU())
        self.head = nn.Linear(width, 10)
        nn.init.normal_(self.head.weight)

    def forward(self, x):
        return self.head(self.body(x))


devices, out = int(sys.argv[1]), Path(sys.argv[2])
pl.seed_everything(3)
torch.set_num_threads(1)
generator.normed = lambda channels: nn.GroupNorm(1, channels)  # nor any in the generator, for the same reason
torch.manual_seed(0)
teacher = FrozenTeacher(Net(16), check=False)
torch.manual_seed(1)
module = DataFreeDistiller(
    Net(8), teacher, {"kd": Term(SoftTarget())}, GeneratorRecipe(latent=8, width=4, conditional=True),
    {
        "sure": Term(OneHot("drawn")),
        "act": Term(Activation(), 0.1, teacher="body"),
        "adv": Term(Discrepancy("kl"), 0.1),
    },
    lambda p: torch.optim.SGD(p, 0.02, momentum=0.9), lambda p: torch.optim.SGD(p, 0.02, momentum=0.9),
    generator_steps=2, generator_clip=5.0,
)
seen = {}
made = synthesis.Synthesis.made


def remembered(self, purpose, index, number):
    image, label = made(self, purpose, index, number)
    if purpose == "student":
        seen.update(zip([f"{int(e)}-{int(i)}" for e, i in zip(number, index)], image.detach()))
    return image, label


synthesis.Synthesis.made = remembered
data = NoTrainingImages(DigitsDataModule(val_fraction=0.0), steps_per_epoch=4, global_batch_size=16)
trainer = pl.Trainer(
    accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", precision="64-true", max_epochs=2,
    logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    limit_val_batches=0, default_root_dir=str(out), gradient_clip_val=1.0,
)
trainer.fit(module, data)
state = {**module.state_dict(), **{f"generator.{k}": v for k, v in module.synthesis.generator.state_dict().items()}}
kept = {"state": state, "seen": seen, "step": trainer.global_step}
torch.save(kept, out / f"{devices}-{trainer.global_rank}.pt")
'''


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process, and each of two, has at the end."""
    out = tmp_path_factory.mktemp("ddp")
    (out / "script.py").write_text(SCRIPT)
    environment = {key: value for key, value in os.environ.items() if key != "PL_GLOBAL_SEED"}
    for devices in ("1", "2"):
        command = [sys.executable, str(out / "script.py"), devices, str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    return {name: torch.load(Path(out / f"{name}.pt")) for name in ("1-0", "2-0", "2-1")}


def test_student_and_generator_equal_those_of_one_process(ends: dict[str, Any]) -> None:
    alone = ends["1-0"]["state"]
    assert {"student.head.weight", "generator.project.weight"} <= alone.keys()
    for rank in ("2-0", "2-1"):
        assert ends[rank]["state"].keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(ends[rank]["state"][key], value, rtol=1e-7, atol=1e-9, msg=f"{rank} {key}")


def test_only_the_students_updates_count(ends: dict[str, Any]) -> None:
    assert [ends[name]["step"] for name in ("1-0", "2-0", "2-1")] == [8, 8, 8]


def test_ranks_share_the_images_of_one_process(ends: dict[str, Any]) -> None:
    alone, one, other = (ends[name]["seen"] for name in ("1-0", "2-0", "2-1"))
    assert len(alone) == 2 * 4 * 16
    assert not one.keys() & other.keys()
    assert one.keys() | other.keys() == alone.keys()
    for name, image in {**one, **other}.items():
        torch.testing.assert_close(image, alone[name], rtol=1e-7, atol=1e-9)
    pictures = torch.stack(list(alone.values())).flatten(1)
    assert torch.cdist(pictures, pictures).add(torch.eye(len(pictures))).min() > 1e-6
