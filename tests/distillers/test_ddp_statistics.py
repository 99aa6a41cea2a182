"""Two real processes over gloo: buffers that are each rank's own in training, the first rank's in evaluation."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow
SCRIPT = '''
"""Train a network with BatchNorm under Lightning's DDP and under the chosen one; keep states and what was said."""
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from kd_lightning.callbacks import Preemption
from kd_lightning.cli.strategy import chosen
from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.distillers import OfflineDistiller, Term
from kd_lightning.losses import SoftTarget
from kd_lightning.models import FrozenTeacher
from kd_lightning.run_folder import RunFolder


def network(width):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 10))


class Watch(pl.Callback):
    """Buffers in training and in evaluation, and all that this process says from the end of a step to the next."""

    def __init__(self):
        self.own, self.evaluated, self.said, self.profile = [], [], [], None

    def end(self):
        if self.profile is not None:
            self.profile.stop()
            self.said.append([e.name for e in self.profile.events() if e.name.startswith("gloo:")])
            self.profile = None

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.end()
        self.own.append([b.clone() for b in module.student.buffers()])
        if trainer.current_epoch == 1 and batch_idx < 2:  # the epoch has three
            self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
            self.profile.start()

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking:
            self.evaluated.append([b.clone() for b in module.student.buffers()])


out = Path(sys.argv[1])
torch.set_num_threads(1)
for kind in ("lightning", "ours"):
    pl.seed_everything(3)
    torch.manual_seed(0)
    teacher, student = FrozenTeacher(network(16), check=False), network(8)
    sgd = lambda p: torch.optim.SGD(p, 0.05, momentum=0.9)
    module = OfflineDistiller(student, teacher, {"kd": Term(SoftTarget(4.0))}, sgd, num_classes=10)
    stated = {"strategy": "auto", "devices": 2, "accelerator": "cpu"}
    strategy = DDPStrategy() if kind == "lightning" else chosen(stated, module)
    watch, callbacks = Watch(), [] if kind == "lightning" else [Preemption(RunFolder(out))]
    trainer = pl.Trainer(
        **{**stated, "strategy": strategy}, precision="64-true", max_epochs=2, callbacks=[watch, *callbacks],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=str(out),
        use_distributed_sampler=False,
    )
    trainer.fit(module, DigitsDataModule(global_batch_size=500, eval_batch_size=67))
    seen = {"state": module.state_dict(), "own": watch.own, "evaluated": watch.evaluated, "said": watch.said,
            "metrics": {k: v for k, v in trainer.callback_metrics.items() if k.startswith("val/")}}
    torch.save(seen, out / f"{kind}-{trainer.global_rank}.pt")
'''
NAMES = ("lightning-0", "lightning-1", "ours-0", "ours-1")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("ddp")
    (out / "script.py").write_text(SCRIPT)
    environment = {key: value for key, value in os.environ.items() if key != "PL_GLOBAL_SEED"}
    command = [sys.executable, str(out / "script.py"), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: torch.load(out / f"{name}.pt") for name in NAMES}


def equal(these: Any, those: Any) -> None:
    torch.testing.assert_close(these, those, rtol=0, atol=0)


def test_the_first_rank_has_what_it_has_under_lightnings_ddp(seen: dict[str, Any]) -> None:
    for key in ("state", "own", "metrics"):
        equal(seen["ours-0"][key], seen["lightning-0"][key])


def test_all_ranks_evaluate_the_same_network(seen: dict[str, Any]) -> None:
    equal(seen["ours-1"]["evaluated"], seen["ours-0"]["evaluated"])
    equal(seen["ours-1"]["metrics"], seen["ours-0"]["metrics"])
    assert len(seen["ours-0"]["evaluated"]) > 0


def test_in_training_the_statistics_are_each_ranks_own(seen: dict[str, Any]) -> None:
    first, second = seen["ours-0"]["own"][-1], seen["ours-1"]["own"][-1]
    assert not torch.equal(first[0], second[0])


def test_from_step_to_step_only_gradients_are_exchanged(seen: dict[str, Any]) -> None:
    gradients, question = ["gloo:all_reduce"], ["gloo:all_reduce"]  # was anybody asked to leave? in every fifth step
    assert seen["ours-0"]["said"] == [gradients, gradients + question]
    assert [said.count("gloo:broadcast") for said in seen["lightning-0"]["said"]] >= [1, 1]
