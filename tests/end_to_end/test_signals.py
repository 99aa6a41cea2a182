"""Real processes, killed or asked to leave: what is left can be resumed, and ends where an uninterrupted run ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

CONFIG = Path(__file__).parents[2] / "configs/digits/supervised/teacher.yaml"
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
DDP = ["--trainer.devices=2", "--trainer.strategy=ddp"]
PATIENCE = 120.0  # seconds, on a busy machine


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PL_GLOBAL_SEED"}
    command = [sys.executable, "-m", "kd_lightning", *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stderr=subprocess.STDOUT, stdout=-1)


def fit(folder: Path, run: str, *options: str) -> subprocess.Popen[str]:
    return started(folder, "fit", "--config", str(CONFIG), "--experiment=e", f"--run={run}", *QUIET, *options)


def wait_for(fact: Callable[[], object], process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + PATIENCE
    while not fact():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit, "nothing happened"
        time.sleep(0.02)


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == code, said
    return said


def student_of(folder: Path, run: str) -> dict[str, torch.Tensor]:
    return dict(torch.load(folder / "runs/e" / run / "checkpoints/last.ckpt", weights_only=True)["state_dict"])


def rank_one(parent: int) -> int:
    """The process that the launching one started: a child that runs this package."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status, line = (entry / "stat").read_text(), (entry / "cmdline").read_text()
            except OSError:
                continue
            if int(status.rpartition(")")[2].split()[1]) == parent and "kd_lightning" in line:
                return int(entry.name)
    raise AssertionError("there is no second rank")


def test_killed_in_mid_epoch_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    options = ["--trainer.max_epochs=3", "--checkpoints.every_steps=4"]
    whole = fit(tmp_path, "whole", *options)
    finished(whole)
    killed = fit(tmp_path, "killed", *options)
    last = tmp_path / "runs/e/killed/checkpoints/last.ckpt"
    wait_for(last.exists, killed)
    killed.send_signal(signal.SIGKILL)
    finished(killed, -signal.SIGKILL)
    assert not (tmp_path / "runs/e/killed/run.json").exists()
    assert "resuming" in finished(started(tmp_path, "resume", "runs/e/killed"))
    ours, its = student_of(tmp_path, "whole"), student_of(tmp_path, "killed")
    assert all(torch.equal(ours[key], its[key]) for key in ours)
    metrics = [(tmp_path / "runs/e" / run / "metrics.csv").read_text() for run in ("whole", "killed")]
    assert metrics[0] == metrics[1]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the second rank in /proc")
@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_either_rank_can_be_asked_and_both_leave(tmp_path: Path, rank: int) -> None:
    process = fit(tmp_path, "r", "--trainer.max_epochs=5000", *DDP)
    last = tmp_path / "runs/e/r/checkpoints/last.ckpt"
    wait_for(last.exists, process)
    other = rank_one(process.pid)
    os.kill(process.pid if rank == 0 else other, signal.SIGTERM)
    assert "leaving" in finished(process, 75)
    assert not Path(f"/proc/{other}").exists() or "Z" in Path(f"/proc/{other}/stat").read_text()
    steps = torch.load(last, weights_only=True)["global_step"]
    assert steps % 5 == 0
