"""FSDP by the command line: two ranks train, one process goes on with what they left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TEACHER = Path(__file__).parents[2] / "configs/digits/supervised/teacher.yaml"


def command(folder: Path, *arguments: str) -> None:
    hidden = {"PL_GLOBAL_SEED", "LOCAL_RANK", "WORLD_SIZE"}
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run(
        [sys.executable, "-m", "kd_lightning", *arguments, "--trainer.accelerator=cpu"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_fit_on_two_ranks_and_test_on_one(tmp_path: Path) -> None:
    options = [
        "--trainer.max_epochs=1",
        "--trainer.devices=2",
        "--trainer.strategy=fsdp",
        "--trainer.precision=32-true",
    ]
    command(tmp_path, "fit", "--config", str(TEACHER), "--experiment=e", "--run=r", *options)
    run = tmp_path / "runs/e/r"
    assert json.loads((run / "run.json").read_text())["devices"] == 2
    assert (run / "checkpoints/last.ckpt").is_file()
    assert "strategy: fsdp" in (run / "config.yaml").read_text()
    command(tmp_path, "test", str(run), "--trainer.devices=1", "--trainer.strategy=auto")
    assert json.loads((run / "results.json").read_text())["test/top1"] > 0.15
