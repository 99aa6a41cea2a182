"""Preemption: a signal asks a run to leave; it saves at a step boundary, on all ranks together, and can be resumed."""

import os
import shutil
import signal
import subprocess
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info

from kd_lightning.run_folder import RunFolder

EXIT_CODE = 75  # EX_TEMPFAIL: try again later
EVERY_STEPS = 5  # over several ranks, how often they ask each other


class Preempted(SystemExit):
    """The run was asked to leave, has saved its state, and can be resumed."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class Preemption(pl.Callback):
    """On SIGTERM or SIGUSR1: finish the step, save ``last.ckpt``, leave with exit code 75.

    The handler only sets a flag, so nothing is saved from the middle of a step; ranks agree on the step (all-reduce
    MAX). Under SLURM, SIGUSR1 also requeues the job, once.

    Args:
        folder: The run's.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.received = 0
        self._before: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = max(self.received, number)

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen already: one rank that left now would leave the others waiting."""
        self._listen()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen, instead of Lightning, which would save in the middle of a step.

        Lightning (2.6) also has the first rank tell all others in every step whether it was asked to leave, and has the
        host wait for that; this callback asks less often, and all ranks.
        """
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = quiet  # type: ignore[method-assign]
        self._listen()

    def _listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            if (before := signal.signal(number, self._note)) != self._note:
                self._before[number] = before

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen no more."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the step boundary: if any rank was asked to leave, all save and leave."""
        number = self.received
        if trainer.world_size > 1:
            if trainer.global_step % EVERY_STEPS:
                return
            flag = torch.tensor(number, device=pl_module.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            number = int(flag)
        if not number:
            return
        for ignored in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(ignored, signal.SIG_IGN)
        trainer.save_checkpoint(self.folder.last)
        rank_zero_info(
            f"{signal.Signals(number).name}: saved {self.folder.last} at step {trainer.global_step}, leaving"
        )
        if number == signal.SIGUSR1 and trainer.is_global_zero:
            requeue()
        raise Preempted


def quiet() -> None:
    """Say nothing."""


def requeue() -> None:
    """Put the SLURM job that this process belongs to back into the queue; outside SLURM nothing happens."""
    job = os.environ.get("SLURM_JOB_ID")
    if job and shutil.which("scontrol"):
        subprocess.run(["scontrol", "requeue", job], check=True)
