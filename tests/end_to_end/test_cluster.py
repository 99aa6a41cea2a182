"""The job scripts: two nodes on loopback, and what a requeued job does."""

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
CLUSTER = REPOSITORY / "configs/cluster"
TEACHER = REPOSITORY / "configs/digits/supervised/teacher.yaml"


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def with_venv() -> dict[str, str]:
    hidden = {"PL_GLOBAL_SEED", "LOCAL_RANK", "WORLD_SIZE"}
    known = {key: value for key, value in os.environ.items() if key not in hidden}
    return known | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.mark.slow
def test_torchrun_on_two_nodes(tmp_path: Path) -> None:
    port, options = str(free_port()), ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--experiment=e"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.limit_train_batches=3"]
    nodes = [
        subprocess.Popen(
            ["bash", str(CLUSTER / "torchrun.sh"), str(TEACHER), "r", *options, *quiet],
            cwd=tmp_path,
            env=with_venv()
            | {"NODES": "2", "NODE_RANK": str(rank), "DEVICES": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [node.communicate(timeout=200)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert json.loads((tmp_path / "runs/e/r/run.json").read_text())["devices"] == 2
    assert [path.name for path in (tmp_path / "runs/e").iterdir()] == ["r"]
    assert len((tmp_path / "runs/e/r/metrics.csv").read_text().splitlines()) == 2


def fake(folder: Path, name: str) -> None:
    script = folder / name
    script.write_text(f'#!/usr/bin/env bash\necho {name} "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IEXEC)


def test_slurm_fits_then_resumes(tmp_path: Path) -> None:
    fake(tmp_path, "srun")
    environment = with_venv() | {"SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "4"}
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    command = ["bash", str(CLUSTER / "slurm.sh"), "x/kd.yaml", "r", "--seed_everything", "3"]
    first = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "kd-lightning fit --config x/kd.yaml --experiment kd --run r --trainer.num_nodes 2" in first.stdout
    assert first.stdout.endswith("--trainer.devices 4 --trainer.strategy ddp --seed_everything 3\n")
    (tmp_path / "runs/kd/r").mkdir(parents=True)
    (tmp_path / "runs/kd/r/config.yaml").touch()
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert again.stdout.endswith("kd-lightning resume runs/kd/r\n")
