"""FSDP over two gloo ranks: each holds its part of student and teacher, and they end as one process does."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from kd_lightning.distillers.scheduling import check_restored
from kd_lightning.models import load_weights

pytestmark = pytest.mark.slow
SCRIPT = '''
"""Distil for six steps in float64 by logits and features; write what each rank holds."""
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins import DoublePrecision
from torch import nn
from torch.distributed.tensor import DTensor

from kd_lightning.callbacks import SafeCheckpointIO
from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.distillers import FullySharded, OfflineDistiller, Term, Window
from kd_lightning.losses import AttentionTransfer, CrossEntropy, Hint, SoftTarget
from kd_lightning.models import FrozenTeacher


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width, momentum=0.3)

    def forward(self, x):
        return x + torch.relu(self.norm(self.conv(x)))


class Net(nn.Module):
    """A row of blocks; a head that no active term reaches at first. In training, the student has no BatchNorm."""

    def __init__(self, width, norm):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(3)))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(4 * width, 10)
        if not norm:
            for block in self.blocks:
                block.norm = nn.Identity()

    def forward(self, x):
        return self.head(self.pool(self.blocks(self.stem(x))))


class Count(pl.Callback):
    """Elements of all parameters, and of those that this rank holds, before each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        networks = {"student": module.student, "hint": module.criteria.losses["hint"], "teacher": teacher.network}
        parameters = {name: list(network.parameters()) for name, network in networks.items()}
        own = {n: sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in ps)
               for n, ps in parameters.items()}
        self.seen.append({name: (sum(p.numel() for p in ps), own[name]) for name, ps in parameters.items()})


devices, out, name, ckpt = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], (sys.argv[4:] or [None])[0]
pl.seed_everything(3)
torch.set_num_threads(1)
torch.manual_seed(0)
teacher = FrozenTeacher(Net(6, norm=True), check=False)
torch.manual_seed(1)
criteria = {
    "ce": Term(CrossEntropy(), 1.0, teacher=None),
    "kd": Term(SoftTarget(4.0), 0.9),
    "hint": Term(Hint("linear"), 1.0, student="pool", teacher="pool"),
    "at": Term(AttentionTransfer(), 10.0, student="blocks.1", teacher="blocks.1"),
}
module = OfflineDistiller(
    Net(4, norm=False).double(), teacher, criteria, lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0.01),
    weight_decay_on="matrices",
)
# 1211 training samples in batches of 404: of the last 403, one rank has 202; the last validation batch is one image
data = DigitsDataModule(global_batch_size=404, eval_batch_size=45, val_fraction=0.101)
count = Count()
trainer = pl.Trainer(
    accelerator="cpu", devices=devices, strategy=FullySharded() if devices > 1 else "auto", max_epochs=2,
    plugins=[SafeCheckpointIO(), DoublePrecision()], gradient_clip_val=1.0, num_sanity_val_steps=0,
    logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(out),
    callbacks=[count, pl.callbacks.ModelCheckpoint(
        out / name, filename="{step}", auto_insert_metric_name=False, every_n_train_steps=2, save_top_k=-1)],
)
trainer.fit(module, data, ckpt_path=ckpt)
figures = {k: float(v) for k, v in trainer.callback_metrics.items()}
tested = trainer.test(module, data, verbose=False)[0]
torch.save({"held": count.seen, "figures": figures | tested}, out / f"{name}-{trainer.global_rank}.pt")
'''

RUNS = {  # name: (devices, checkpoint to resume)
    "alone": (1, None),
    "sharded": (2, None),
    "resumed": (2, "sharded/2.ckpt"),
    "resumed_alone": (1, "sharded/2.ckpt"),
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all runs have left what they held, and their checkpoints."""
    out = tmp_path_factory.mktemp("fsdp")
    (out / "script.py").write_text(SCRIPT)
    environment = {key: value for key, value in os.environ.items() if key != "PL_GLOBAL_SEED"}
    for name, (devices, checkpoint) in RUNS.items():
        command = [sys.executable, str(out / "script.py"), str(devices), str(out), name]
        command += [] if checkpoint is None else [str(out / checkpoint)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    return out


def checkpoint(out: Path, run: str, step: int = 6) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(out / run / f"{step}.ckpt", weights_only=True)
    return content


def assert_same(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    """The same entries within a tolerance; with 0, bit for bit."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=0, atol=tolerance, msg=key)


def optimizer_state(content: dict[str, Any]) -> dict[str, Any]:
    state = content["optimizer_states"][0]["state"]
    return {f"{index}.{key}": value for index, values in state.items() for key, value in values.items()}


@pytest.mark.parametrize("step", [2, 6])
def test_student_adapters_and_optimizer_are_those_of_one_process(out: Path, step: int) -> None:
    alone, sharded = checkpoint(out, "alone", step), checkpoint(out, "sharded", step)
    assert {key.split(".")[0] for key in alone["state_dict"]} == {"student", "criteria"}
    assert_same(alone["state_dict"], sharded["state_dict"], 1e-9)
    assert_same(optimizer_state(alone), optimizer_state(sharded), 1e-9)
    assert alone["optimizer_states"][0]["param_groups"] == sharded["optimizer_states"][0]["param_groups"]
    assert len(alone["optimizer_states"][0]["param_groups"]) == 2


def test_they_have_learnt(out: Path) -> None:
    early, late = (checkpoint(out, "sharded", step)["state_dict"] for step in (2, 6))
    assert all(not torch.equal(late[key], value) for key, value in early.items())


def test_each_rank_holds_its_part(out: Path) -> None:
    held = [torch.load(out / f"sharded-{rank}.pt")["held"] for rank in (0, 1)]
    assert len(held[0]) == len(held[1]) == 6
    for step in range(1, 6):  # the teacher is spread when it is first asked
        for network in ("student", "hint", "teacher"):
            (size, first), (_, second) = (held[rank][step][network] for rank in (0, 1))
            assert first + second == size
            assert 0.4 * size < first < 0.6 * size
    assert held[0][1]["teacher"][0] < held[0][0]["teacher"][0]  # it is the folded copy


def test_figures_are_those_of_one_process(out: Path) -> None:
    alone, first, second = (torch.load(out / f"{name}.pt")["figures"] for name in ("alone-0", "sharded-0", "sharded-1"))
    assert first == second
    assert alone == pytest.approx(first, abs=1e-6)
    assert {"train/hint", "train/at", "val/top1", "test/teacher_top1", "test/agreement"} <= alone.keys()


def test_resume_is_exact(out: Path) -> None:
    whole, resumed = checkpoint(out, "sharded"), checkpoint(out, "resumed")
    assert_same(whole["state_dict"], resumed["state_dict"], 0)
    assert_same(optimizer_state(whole), optimizer_state(resumed), 0)


def test_one_process_goes_on_where_ranks_stopped(out: Path) -> None:
    assert_same(checkpoint(out, "alone")["state_dict"], checkpoint(out, "resumed_alone")["state_dict"], 1e-9)


def test_the_checkpoint_fills_a_plain_network(out: Path) -> None:
    names: dict[str, Any] = {}
    exec(SCRIPT.partition("class Count")[0], names)
    network: nn.Module = names["Net"](4, norm=False)
    load_weights(network, out / "sharded/6.ckpt")
    state = checkpoint(out, "sharded")["state_dict"]
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, state[f"student.{key}"].float())


def test_another_learning_rate_than_the_checkpoints_is_refused() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    made, stored = (torch.optim.SGD([parameter], lr) for lr in (0.03, 0.02))
    restored = {"optimizer_states": [stored.state_dict()], "lr_schedulers": []}
    strategy = SimpleNamespace(optimizers=[made], lr_scheduler_configs=[], restore_checkpoint_after_setup=True)
    trainer: Any = SimpleNamespace(strategy=strategy)
    with pytest.raises(ValueError, match=r"lr: 0\.03 here, 0\.02 in the checkpoint"):
        check_restored(trainer, restored)
    strategy.restore_checkpoint_after_setup = False  # then it is compared where the optimizer is made
    check_restored(trainer, restored)
