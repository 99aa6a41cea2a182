"""Preemption: a signal in the middle of an epoch, what is left behind, and how SLURM hears of it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kd_lightning.callbacks import Preempted, Preemption
from kd_lightning.callbacks.preemption import requeue
from kd_lightning.run_folder import RunFolder

TEACHER = Path(__file__).parents[2] / "configs/digits/supervised/teacher.yaml"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
PATIENCE = 120  # seconds


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a stand-in for ``scontrol``, alone on the PATH, was called with, a line a call."""
    log, program = tmp_path / "calls", tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return log


@pytest.fixture
def handlers() -> Any:
    """The handlers before and after a test are the same."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


class SavingTrainer(SimpleNamespace):
    """A trainer of one rank that notes what it was asked to save."""

    world_size, global_step, is_global_zero = 1, 7, True
    fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace())

    def save_checkpoint(self, path: Path) -> None:
        self.saved = [*getattr(self, "saved", []), path]


def step(callback: Preemption, trainer: Any) -> None:
    callback.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]


def test_the_job_is_requeued_once(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    requeue()
    assert calls.read_text().splitlines() == ["requeue 4711"]


def test_outside_slurm_nothing_is_requeued(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    requeue()
    assert not calls.exists()


def test_without_scontrol_nothing_is_requeued(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("PATH", str(tmp_path))
    requeue()


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGTERM, 0), (signal.SIGUSR1, 1)])
def test_a_signal_is_answered_at_the_step_boundary(
    calls: Path, handlers: Any, monkeypatch: pytest.MonkeyPatch, number: int, requeued: int
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    callback, trainer = Preemption(RunFolder(Path("run"))), SavingTrainer()
    callback.on_train_start(trainer, None)  # type: ignore[arg-type]
    step(callback, trainer)
    assert not trainer.__dict__
    signal.raise_signal(number)
    assert not trainer.__dict__  # nothing is saved in the middle of a step
    with pytest.raises(Preempted) as left:
        step(callback, trainer)
    assert left.value.code == 75
    assert trainer.saved == [Path("run/checkpoints/last.ckpt")]
    assert (calls.read_text().splitlines() if calls.exists() else []) == ["requeue 4711"] * requeued
    signal.raise_signal(signal.SIGTERM)  # the scheduler's impatience does not cut the leaving short


def test_who_listened_before_listens_again(handlers: Any) -> None:
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    callback = Preemption(RunFolder(Path("run")))
    callback.on_train_start(SavingTrainer(), None)  # type: ignore[arg-type]
    signal.raise_signal(signal.SIGTERM)
    assert (heard, callback.received) == ([], signal.SIGTERM)
    callback.on_train_end(None, None)  # type: ignore[arg-type]
    signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGTERM]


@pytest.mark.slow
def test_sigterm_to_a_process_leaves_what_resume_completes(tmp_path: Path) -> None:
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
    small = ["--data.init_args.global_batch_size=16", "--trainer.log_every_n_steps=5", "--trainer.max_epochs=2"]
    line = ["fit", "--config", str(TEACHER), "--experiment", "e", "--run", "r", *small, *quiet]
    environment = {**os.environ, "PYTHONPATH": str(TEACHER.parents[3])}
    command = [sys.executable, "-m", "kd_lightning"]
    folder = RunFolder(tmp_path / "runs/e/r")
    with subprocess.Popen([*command, *line], cwd=tmp_path, env=environment, stderr=subprocess.PIPE) as process:
        begun = time.monotonic()
        while not folder.metrics.exists() and process.poll() is None and time.monotonic() - begun < PATIENCE:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, said.decode()
    checkpoint = torch.load(folder.last, weights_only=True)
    assert 5 <= checkpoint["global_step"] < 2 * 80
    assert not folder.record.exists()
    resumed = subprocess.run(
        [*command, "resume", "runs/e/r"], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert resumed.returncode == 0, resumed.stderr.decode()
    assert folder.record.exists()
    assert torch.load(folder.last, weights_only=True)["global_step"] > checkpoint["global_step"]
