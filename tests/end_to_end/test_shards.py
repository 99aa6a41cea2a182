"""Distillation from shards by the command line, with stored outputs: stop anywhere, resume, read again."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from kd_lightning.cli.commands import run
from kd_lightning.datamodules.make_shards import make_shards
from kd_lightning.models import FrozenTeacher, Network, save_weights
from kd_lightning.run_folder import RunFolder

QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")
CLASSES, PER_CLASS, SIDE = 3, 12, 24
TRAIN, TEST = "train-{000000..000007}.tar", "val-{000000..000007}.tar"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Soft targets of a stored teacher, from eight shards of colours in noise."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for name in ("train", "val"):
        for row in range(CLASSES * PER_CLASS):
            pixels = random.integers(0, 120, (SIDE, SIDE, 3), dtype=np.uint8)
            pixels[..., row % CLASSES] += 120
            path = Path(f"images/{name}/{row % CLASSES}/{row:02}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        make_shards(Path("images", name), Path("shards", name), per_shard=5)
    save_weights(Network("cifar_resnet8").build(CLASSES, 3), Path("teacher.safetensors"))
    frozen = {"network": {"name": "cifar_resnet8", "weights": str(tmp_path / "teacher.safetensors")}, "check": False}
    stored = {"views": 2, "path": "x.outputs", "teacher": {"class_path": "FrozenTeacher", "init_args": frozen}}
    shards: dict[str, Any] = {
        "root": "shards",
        "train": "train-{000000..000007}.tar",
        "test": "val-{000000..000007}.tar",
    }
    shards |= {"global_batch_size": 8, "shuffle_window": 3, "image_size": 16, "workers": 1, "seed": 0}
    content = {
        "seed_everything": 0,
        "trainer": {"max_epochs": 3, "log_every_n_steps": 2, "devices": 1, "precision": "32-true"},
        "model": {
            "class_path": "OfflineDistiller",
            "init_args": {
                "student": {"name": "cifar_resnet8"},
                "teacher": {"class_path": "StoredOutputs", "init_args": stored},
                "criteria": {
                    "ce": {"loss": "CrossEntropy", "weight": 0.5, "teacher": None},
                    "kd": {"loss": "SoftTarget", "weight": 0.5},
                },
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}},
            },
        },
        "data": {"class_path": "ShardsDataModule", "init_args": shards | {"validate_on_test": True}},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def fit(config: Path, name: str, *options: str) -> RunFolder:
    assert run(["fit", "--config", str(config), "--experiment=e", f"--run={name}", *QUIET, *options]) == 0
    return RunFolder(Path("runs/e") / name)


def student_of(folder: RunFolder) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder.last, weights_only=True)["state_dict"]
    return state


def assert_same(one: RunFolder, other: RunFolder) -> None:
    mine, its = student_of(one), student_of(other)
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[key], its[key]) for key in mine)


@pytest.mark.parametrize("step", [pytest.param(3, marks=pytest.mark.slow), 11])
def test_resumed_equals_uninterrupted(
    config: Path, gone_at: Callable[[int], AbstractContextManager[None]], step: int
) -> None:
    # In the middle of an epoch: while the store is filled, and while it is read.
    whole = fit(config, "whole", "--model.teacher.init_args.path=whole.outputs")
    with gone_at(step):
        fit(config, "stopped", "--checkpoints.every_steps=1")
    stopped = RunFolder(Path("runs/e/stopped"))
    assert run(["resume", str(stopped.path), *QUIET]) == 0
    assert_same(whole, stopped)


def test_stored_outputs_are_of_these_shards(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: FrozenTeacher, *given: object) -> None:
        raise AssertionError("the teacher was asked again")

    whole = fit(config, "first")
    monkeypatch.setattr(FrozenTeacher, "__call__", refuse)
    monkeypatch.setattr(FrozenTeacher, "unlabelled", refuse)
    again = fit(config, "again", "--data.init_args.workers=0")
    assert_same(whole, again)
    for path in Path("shards").glob("train-*.tar"):
        path.unlink()
    make_shards(Path("images/train"), Path("shards/train"), per_shard=5, shuffle=False)
    capsys.readouterr()
    assert run(["fit", "--config", str(config), "--run=other", *QUIET]) == 2
    assert "data.images" in capsys.readouterr().err
