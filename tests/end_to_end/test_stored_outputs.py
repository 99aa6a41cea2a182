"""Stored outputs by the command line: they equal a teacher that is asked, and several fill one file."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from kd_lightning.batch import Batch
from kd_lightning.cli.commands import run
from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.distillers import OfflineDistiller, Term
from kd_lightning.losses import SoftTarget
from kd_lightning.models import FrozenTeacher, Network, StoredOutputs, save_weights
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


@pytest.mark.slow
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


# In Python, where modules and data outlive a run


def distiller() -> OfflineDistiller:
    teacher = FrozenTeacher(Network("cifar_resnet8", weights="teacher.safetensors"), check=False)
    kept = StoredOutputs(teacher, 2, "x.outputs")
    sgd = partial(torch.optim.SGD, lr=0.1)
    return OfflineDistiller(Network("cifar_resnet8"), kept, {"kd": Term(SoftTarget())}, sgd)


def data() -> DigitsDataModule:
    return DigitsDataModule(global_batch_size=512, val_fraction=0.1, seed=3)


def trainer(epochs: int) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return pl.Trainer(max_epochs=epochs, accelerator="cpu", devices=1, logger=False, **quiet)  # type: ignore[arg-type]


class Compare(pl.Callback):
    """What is stored of a view must be the teacher's answer to it."""

    seen = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, OfflineDistiller)
        assert isinstance(pl_module.teacher, StoredOutputs)
        told, asked = pl_module.teacher(batch).logits, pl_module.teacher.unlabelled(batch).logits
        torch.testing.assert_close(told, asked, rtol=2e-3, atol=2e-3)
        self.seen += 1


def test_a_second_training_with_other_data_reads_its_own_views() -> None:
    module, compare = distiller(), Compare()
    trainer(2).fit(module, data())
    longer = trainer(4)
    longer.callbacks.append(compare)  # type: ignore[attr-defined]
    longer.fit(module, data())
    assert compare.seen == 4 * 3


def test_data_go_back_to_views_of_their_own() -> None:
    used = data()
    trainer(1).fit(distiller(), used)
    plan = used.plan("train", True)
    plan.set_epoch(2)
    assert {int(number) for _, numbers in plan.batches_from(0) for number in numbers} == {2}


def test_an_evaluation_may_come_first() -> None:
    module, used = distiller(), data()
    trainer(1).validate(module, used, verbose=False)
    trainer(1).fit(module, used)
    assert isinstance(module.teacher, StoredOutputs)
    assert module.teacher.store is not None
