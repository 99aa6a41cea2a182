"""Two real processes over gloo under the strategy that the command line chooses, and what they say to each other."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow
SCRIPT = '''
"""Distil in float64 with bucket views, a static graph and accumulated gradients; count what is said in a step."""
import json, sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from kd_lightning.cli.strategy import chosen
from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.distillers import OfflineDistiller, Term
from kd_lightning.losses import Hint
from kd_lightning.models import FrozenTeacher


class Net(nn.Module):
    """No BatchNorm; no term reaches the head."""

    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU())
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.body(x))


class Count(pl.Callback):
    """What this process starts to say to others between the steps of an epoch and in its evaluation."""

    def __init__(self):
        self.steps, self.evaluation = [], []
        self.profile = None

    def begin(self):
        self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
        self.profile.start()

    def end(self):
        self.profile.stop()
        said = [event.name for event in self.profile.events() if event.name.startswith("gloo:")]
        self.profile = None
        return said

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.current_epoch == 1:
            self.begin()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1:
            self.steps.append(self.end())

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking:
            self.begin()

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking:
            self.evaluation += self.end()


devices, out = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
for kind in ("static", "accumulated") if devices == 1 else ("static", "accumulated", "foreign"):
    pl.seed_everything(3)
    torch.manual_seed(0)
    teacher = FrozenTeacher(Net(16), check=False)
    torch.manual_seed(1)
    criteria = {"hint": Term(Hint("linear"), 1.0, student="body", teacher="body")}
    student = Net(8)
    start = {key: value.clone() for key, value in student.head.state_dict().items()}
    module = OfflineDistiller(
        student, teacher, criteria, lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01), num_classes=10
    )
    # 1211 training samples in batches of 200: of the last 11 one rank has 6, the other 5
    data = DigitsDataModule(global_batch_size=200, eval_batch_size=67, val_fraction=0.101)
    count, together = Count(), 2 if kind == "accumulated" else 1
    stated = {"strategy": "auto", "devices": devices, "accelerator": "cpu", "accumulate_grad_batches": together}
    strategy = chosen(stated, module)
    trainer = pl.Trainer(
        **{**stated, "strategy": strategy}, precision="64-true", max_epochs=2, callbacks=[count], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(out),
        use_distributed_sampler=False,
    )
    if kind == "foreign":  # the same batches from a loader that knows nothing of the ranks
        data.prepare_data()
        data.setup()
        own = slice(trainer.global_rank, None, devices)
        batches = [(batch.image[own], batch.target[own]) for batch in data.train_dataloader()]
        trainer.fit(module, DataLoader(batches, batch_size=None))
    else:
        trainer.fit(module, data)
    torch.save(module.state_dict(), out / f"{kind}{devices}-{trainer.global_rank}.pt")
    seen = {"steps": count.steps, "evaluation": count.evaluation, "updates": trainer.global_step,
            "head": all(torch.equal(student.head.state_dict()[k], v) for k, v in start.items()),
            "unreached": [p.grad is None for p in student.head.parameters()],
            "options": getattr(strategy, "_ddp_kwargs", {})}
    (out / f"{kind}{devices}-{trainer.global_rank}.json").write_text(json.dumps(seen))
'''


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ddp")
    (out / "script.py").write_text(SCRIPT)
    environment = {key: value for key, value in os.environ.items() if key != "PL_GLOBAL_SEED"}
    for devices in ("1", "2"):
        command = [sys.executable, str(out / "script.py"), devices, str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    return out


def seen(out: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    return content


@pytest.mark.parametrize(("kind", "updates"), [("static", 14), ("accumulated", 8)])
def test_the_student_is_that_of_one_process(out: Path, kind: str, updates: int) -> None:
    options = {"gradient_as_bucket_view": True, "static_graph": kind == "static", "broadcast_buffers": False}
    assert seen(out, f"{kind}2-0")["options"] == options
    assert seen(out, f"{kind}1-0")["updates"] == seen(out, f"{kind}2-0")["updates"] == updates
    alone = torch.load(out / f"{kind}1-0.pt")
    for rank in (0, 1):
        ours = torch.load(out / f"{kind}2-{rank}.pt")
        assert ours.keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(ours[key], value, rtol=0, atol=1e-9, msg=key)


@pytest.mark.parametrize("name", ["static1-0", "static2-0", "static2-1", "accumulated2-0", "accumulated2-1"])
def test_what_is_not_reached_stays_as_it_was(out: Path, name: str) -> None:
    assert seen(out, name)["unreached"] == [True, True]
    assert seen(out, name)["head"]


def test_in_a_step_only_gradients_are_exchanged(out: Path) -> None:
    assert seen(out, "static2-0")["steps"] == 7 * [["gloo:all_reduce"]]
    # of two batches for one update, the second; and the last one of the epoch
    quiet, loud = [], ["gloo:all_reduce"]
    assert seen(out, "accumulated2-0")["steps"] == [quiet, loud, quiet, loud, quiet, loud, loud]


def test_in_an_evaluation_step_nothing_is_said(out: Path) -> None:
    assert seen(out, "static2-0")["evaluation"] == []


def test_a_foreign_loader_makes_the_ranks_add_up_their_samples(out: Path) -> None:
    assert seen(out, "foreign2-0")["steps"] == 7 * [["gloo:all_reduce", "gloo:all_reduce"]]
