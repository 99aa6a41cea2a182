"""A loss from a file outside the package, with taps and an adapter, used from a YAML by its path."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from kd_lightning import trust
from kd_lightning.cli.commands import run
from kd_lightning.models import Network, save_weights

CONFIG = Path(__file__).parents[2] / "configs/digits/offline/kd.yaml"
SOURCE = '''
import torch
from torch import nn
from kd_lightning.losses import Loss


class Cosine(Loss):
    """1 - cosine of the embeddings."""

    student_tap = "embedding"
    teacher_tap = "embedding"

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def build(self, student, teacher):
        self.adapter = nn.Linear(student[0][1], teacher[0][1])

    def forward(self, student, teacher, target):
        return self.scale * (1 - torch.cosine_similarity(self.adapter(student), teacher)).mean()
'''


def written(folder: Path, criteria: dict[str, object]) -> list[str]:
    """The digits' configuration with other criteria and a teacher of its own, and how to start it."""
    config = yaml.safe_load(CONFIG.read_text())
    init = config["model"]["init_args"]
    network = init["teacher"]["init_args"]["network"]
    torch.manual_seed(1)
    save_weights(
        Network(network["name"], network.get("kwargs", {})).build(10, network.get("kwargs", {}).get("in_chans", 1)),
        folder / "teacher.safetensors",
    )
    init["teacher"]["init_args"] = {
        "network": {**network, "weights": str(folder / "teacher.safetensors")},
        "check": False,
    }
    init["criteria"] = criteria
    (folder / "own.yaml").write_text(yaml.safe_dump(config))
    options = ["--trainer.max_epochs=2", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    return ["fit", "--config", str(folder / "own.yaml"), *options, "--experiment=e", "--run=r"]


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(trust, "ALLOWED", set(trust.BUILT_IN))
    (tmp_path / "my_losses.py").write_text(SOURCE)


CRITERIA: dict[str, object] = {
    "ce": {"loss": "CrossEntropy", "weight": 1.0, "teacher": None},
    "cosine": {"loss": {"class_path": "my_losses.Cosine", "init_args": {"scale": 2.0}}, "weight": 1.0},
}


def test_it_trains_and_its_adapter_is_kept_for_resuming(tmp_path: Path) -> None:
    assert run([*written(tmp_path, CRITERIA), "--allow", "my_losses"]) == 0
    with (tmp_path / "runs/e/r/metrics.csv").open() as opened:
        means = [float(row["train/cosine"]) for row in csv.DictReader(opened) if row["train/cosine"]]
    assert means[-1] < means[0]
    state = torch.load(tmp_path / "runs/e/r/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert "criteria.losses.cosine.adapter.weight" in state


def test_without_permission_it_is_not_imported(tmp_path: Path) -> None:
    # In a process of its own: what one run of a process has allowed, the next one may import too.
    command = [sys.executable, "-m", "kd_lightning", *written(tmp_path, CRITERIA)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "my_losses" in done.stderr
