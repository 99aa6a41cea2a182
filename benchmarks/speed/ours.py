"""Ours: ``kd-lightning fit`` with the pair's YAML file, in turns by a callback that the command line adds.

The callback waits at the start of an epoch and tells the time at its end, when the module has logged and the store is
on the disk, and before a checkpoint is written. All else is as a user has it, but that there is no validation.
"""

import json
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from benchmarks.speed.setting import REPOSITORY, SMALL, Setting
from benchmarks.speed.turns import clock, turns
from kd_lightning.cli.commands import run as carry_out


class InTurns(Checkpoint):
    """One epoch at each turn. Lightning calls checkpoints last, this one first of them."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait; other ranks wait for the first."""
        if trainer.is_global_zero:
            turns().wait()
        trainer.strategy.barrier()
        self.images, self.steps, self.start = 0, 0, clock()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count."""
        self.images += len(batch)
        self.steps += 1
        if trainer.is_global_zero:
            turns().stepped()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell the time; the ranks have images of the same number each."""
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            turns().done(clock() - self.start, self.images * trainer.world_size, self.steps)


def plain_teacher(setting: Setting) -> dict[str, Any]:
    """The teacher that answers every batch; untrained, it is not examined."""
    network = {"name": setting.networks.teacher, "weights": str(setting.weights)}
    return {"class_path": "FrozenTeacher", "init_args": {"network": network, "check": False}}


def stored(setting: Setting, views: int, path: Path) -> dict[str, Any]:
    """The teacher whose answers are kept."""
    arguments = {"teacher": plain_teacher(setting), "views": views, "path": str(path)}
    return {"class_path": "StoredOutputs", "init_args": arguments}


def arguments(setting: Setting, run: str, teacher: dict[str, Any], epochs: int) -> list[str]:
    """The command line of a fit, without what takes turns."""
    pair = setting.networks
    line = ["fit", f"--config={REPOSITORY / pair.config}", "--experiment=speed", f"--run={run}"]
    line += [f"--trainer.max_epochs={epochs}", "--trainer.limit_val_batches=0", "--trainer.devices=1"]
    if pair.side != SMALL:
        data = {"class_path": "ImageFolderDataModule", "init_args": {"root": str(setting.root)}}
        line += [f"--data={json.dumps(data)}", f"--data.init_args.workers={setting.threads}"]
        line += ["--data.init_args.validate_on_test=false"]
    else:
        line += [f"--data.init_args.root={setting.root}", "--data.init_args.validate_on_test=false"]
    line += [f"--data.init_args.global_batch_size={setting.batch}"]
    line += [f"--model.init_args.student={json.dumps({'name': pair.student})}"]
    return [*line, f"--model.init_args.teacher={json.dumps(teacher)}"]


def fit(line: list[str]) -> None:
    """Carry out a command line in turns."""
    sys.exit(carry_out([*line, "--allow=benchmarks", "--trainer.callbacks+=benchmarks.speed.ours.InTurns"]))


def warm(setting: Setting) -> None:
    """All answers are there."""
    fit(arguments(setting, "warm", stored(setting, setting.views, setting.store), setting.rounds + 1))


def cold(setting: Setting) -> None:
    """Every epoch asks the teacher, and stores."""
    epochs = setting.rounds + 1
    fit(arguments(setting, "cold", stored(setting, epochs, Path("cold.outputs")), epochs))


def online(setting: Setting) -> None:
    """Every epoch asks the teacher."""
    fit(arguments(setting, "online", plain_teacher(setting), setting.rounds + 1))


def ranks(setting: Setting, run: str, devices: int, strategy: str) -> None:
    """All answers are there, on so many ranks on the CPU."""
    line = arguments(setting, run, stored(setting, setting.views, setting.store), setting.rounds + 1)
    line += ["--trainer.accelerator=cpu", f"--trainer.devices={devices}", f"--trainer.strategy={strategy}"]
    fit(line)


def one_rank(setting: Setting) -> None:
    """One rank on one core."""
    ranks(setting, "one_rank", 1, "auto")


def two_ranks(setting: Setting) -> None:
    """Two ranks of gloo on two cores."""
    ranks(setting, "two_ranks", 2, "ddp")
