"""Stored outputs by the command line: they equal a teacher that is asked, and several fill one file."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_lightning.cli.commands import run
from kd_lightning.models import FrozenTeacher, Network, save_weights
from kd_lightning.models.output_store import HEADER, Layout, row_sums
from kd_lightning.run_folder import RunFolder

CONFIG = Path(__file__).parents[2] / "configs/digits/offline/kd.yaml"
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")
CLASSES, EPOCHS, BATCH = 10, 4, 128
SAMPLES, TRAINED = 1347, 1212  # the others are for validation
HALF = 2**-11  # what rounding to half precision changes, relative


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the runs lie, beside a teacher."""
    monkeypatch.chdir(tmp_path)
    save_weights(Network("cifar_resnet8").build(CLASSES, 1), Path("teacher.safetensors"))
    return tmp_path


def line(name: str, teacher: dict[str, Any], *more: str) -> list[str]:
    short = [f"--trainer.max_epochs={EPOCHS}", "--trainer.log_every_n_steps=1", "--data.init_args.seed=3"]
    given = [f"--model.teacher={json.dumps(teacher)}", *QUIET, *short, *more]
    return ["fit", "--config", str(CONFIG), "--experiment=e", f"--run={name}", *given]


def asked() -> dict[str, Any]:
    network = {"name": "cifar_resnet8", "weights": str(Path("teacher.safetensors").resolve())}
    return {"class_path": "FrozenTeacher", "init_args": {"network": network, "check": False}}


def stored() -> dict[str, Any]:
    """As many views as epochs: the exact protocol."""
    given = {"teacher": asked(), "views": EPOCHS, "path": str(Path("x.outputs").resolve())}
    return {"class_path": "StoredOutputs", "init_args": given}


def command(name: str, *more: str) -> "subprocess.Popen[str]":
    environment = {key: value for key, value in os.environ.items() if key != "PL_GLOBAL_SEED"} | {
        "OMP_NUM_THREADS": "1"
    }
    words = [sys.executable, "-m", "kd_lightning", *line(name, stored(), *more)]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def losses(name: str, column: str = "train/kd") -> list[float]:
    with RunFolder(Path("runs/e") / name).metrics.open() as file:
        return [float(row[column]) for row in csv.DictReader(file) if row.get(column)]


def filled(path: Path) -> float:
    """The share of the training's rows that are filled; all that are must match their checksums."""
    rows = EPOCHS * SAMPLES
    layout = Layout(rows, 2 * CLASSES)
    assert path.stat().st_size == layout.size
    marks = np.memmap(path, np.uint8, "r", HEADER, (rows,)) == 1
    sums = np.memmap(path, np.uint32, "r", layout.sums, (rows,))
    data = np.memmap(path, np.uint8, "r", layout.data, (rows, 2 * CLASSES))
    assert np.array_equal(row_sums(np.asarray(data[marks])), sums[marks])
    return float(marks.sum()) / (EPOCHS * TRAINED)


def test_stored_equals_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(line("asked", asked())) == 0
    assert run(line("stored", stored())) == 0
    one, other = losses("asked"), losses("stored")
    assert len(one) == len(other) == EPOCHS * -(-TRAINED // BATCH)
    assert other[0] == pytest.approx(one[0], rel=2 * HALF)  # the students are still one and the same
    assert other == pytest.approx(one, rel=20 * HALF)
    assert filled(Path("x.outputs")) == 1

    def refuse(self: FrozenTeacher, *given: object) -> None:
        raise AssertionError("the teacher was built")

    monkeypatch.setattr(FrozenTeacher, "setup", refuse)
    assert run(line("read", stored())) == 0
    assert losses("read") == other  # what fills a file equals what reads it


@pytest.mark.parametrize("kind", ["two ranks", "two runs"])
def test_several_fill_one_file(kind: str) -> None:
    if kind == "two ranks":
        filling = [command("ranks", "--trainer.devices=2", "--trainer.strategy=ddp")]
    else:
        filling = [command("one"), command("other", "--model.init_args.optimizer.init_args.lr=0.02")]
    for process in filling:
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 0, said[-3000:]
    assert filled(Path("x.outputs")) == 1


def test_gone_while_it_fills(gone_at: Callable[[int], AbstractContextManager[None]]) -> None:
    with gone_at(15):
        run(line("gone", stored()))
    assert 0 < filled(Path("x.outputs")) < 1
    assert run(line("again", stored())) == 0
    assert filled(Path("x.outputs")) == 1
