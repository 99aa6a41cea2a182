"""Short runs on the digits, one of each scheme, and what is exported of them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import pytest
import torch
import yaml
from torch import nn

from kd_lightning.cli.commands import run
from kd_lightning.cli.looking import look
from kd_lightning.distillers.evaluating import Answers
from kd_lightning.export import Origin, Part, choose, recipes, write
from kd_lightning.export.choosing import names
from kd_lightning.run_folder import RunFolder

CONFIGS = Path(__file__).parents[2] / "configs/digits"
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")
TEACHER = ("--model.teacher.init_args.network.weights=runs/e/vit", "--model.teacher.init_args.check=false")
VIT = (
    "--model.teacher.init_args.network.name=deit_tiny_patch16_224",
    "--model.teacher.init_args.network.kwargs={img_size: 8, patch_size: 2, embed_dim: 32, depth: 3, num_heads: 2}",
)
GENERATIONS = ("--trainer.max_epochs=3", "--model.generations=3", "--model.epochs_per_generation=1")
EMA = ("--trainer.callbacks+=kd_lightning.callbacks.StudentEMA", "--trainer.callbacks.decay=0.5")
RUNS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "vit": ("supervised/vit.yaml", EMA),
    "deit": ("deit/soft.yaml", (*TEACHER, *VIT)),
    "dml": ("online/dml.yaml", ()),
    "one": ("online/one.yaml", EMA),
    "exits": ("online/be_your_own_teacher.yaml", ()),
    "ban": ("born_again/ban.yaml", GENERATIONS),
}
AS_EXPORTED = ("--trainer.accelerator=cpu", "--trainer.inference_mode=false", "--trainer.limit_test_batches=1")


def train(name: str, config: str, options: tuple[str, ...]) -> None:
    """Leave ``runs/e/<name>`` in the working folder, a run of four steps, or four of each generation."""
    short = ("--trainer.max_epochs=1", *options, "--trainer.limit_train_batches=4", "--trainer.limit_val_batches=1")
    assert run(["fit", "--config", str(CONFIGS / config), "--experiment", "e", "--run", name, *QUIET, *short]) == 0


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with ``runs/e/<name>`` for each of `RUNS`."""
    work = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(work)
        for name, (config, options) in RUNS.items():
            train(name, config, options)
    return work


@pytest.fixture(scope="session")
def small() -> nn.Module:
    """A small convolutional network for images of 1x8x8 pixels, with four classes."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    return nn.Sequential(*layers).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def small_onnx(small: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That network as an ONNX file."""
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    write(Part("", small, None), "onnx", (1, 8, 8), 4, path)
    return path


class Taken(NamedTuple):
    """What a run's test showed: where its parts are from, the parts by name, and the answers to the last batch."""

    origin: Origin
    parts: dict[str | None, Part]
    answers: Answers


class Taker(pl.Callback):
    """Takes all parts of a run, and where there need be no choice the student as None."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.answers = outputs

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        networks = recipes(yaml.safe_load(self.folder.config.read_text())["model"]["init_args"])
        origin = Origin(pl_module, networks, self.folder.path, 1, {})
        wanted = [name for name in names(pl_module) if name != "best"]
        whole: list[None] = [] if "best" in names(pl_module) else [None]
        self.taken = Taken(origin, {name: choose(origin, name) for name in (*whole, *wanted)}, self.answers)


@pytest.fixture(scope="session")
def taken(runs: Path) -> Callable[[str], Taken]:
    """From the name of a run to what its test showed."""
    known: dict[str, Taken] = {}

    def of(name: str) -> Taken:
        if name not in known:
            with pytest.MonkeyPatch.context() as patched:
                patched.chdir(runs)
                taker = Taker(RunFolder(Path("runs/e") / name))
                look(taker.folder, taker, options=AS_EXPORTED)
            known[name] = taker.taken
        return known[name]

    return of
