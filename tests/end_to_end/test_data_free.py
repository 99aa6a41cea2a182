"""Data-free distillation from the command line, from a teacher that knows the digits: learn, picture, stop, resume."""

import csv
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from kd_lightning.cli.commands import run
from kd_lightning.datamodules import DigitsDataModule, ImageFolderDataModule, TransferSet
from kd_lightning.datamodules import digits as digits_room
from kd_lightning.distillers import OfflineDistiller, Term
from kd_lightning.losses import SoftTarget
from kd_lightning.models import FrozenTeacher, Network
from kd_lightning.run_folder import RunFolder

CONFIGS = Path(__file__).parents[2] / "configs"
DAFL, ADVERSARIAL = (CONFIGS / f"digits/data_free/{name}.yaml" for name in ("dafl", "adversarial"))
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")
SHORT = ("--trainer.max_epochs=2", "--data.init_args.steps_per_epoch=5", "--data.init_args.global_batch_size=32")
Fit = Callable[..., RunFolder]
GoneAt = Callable[[int], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a teacher that knows the digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("teacher"))
        line = ["fit", "--config", str(CONFIGS / "digits/supervised/teacher.yaml"), "--run", "t", *QUIET]
        assert run([*line, "--trainer.max_epochs=8"]) == 0
        return Path("runs/teacher/t").absolute()


@pytest.fixture
def fit(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Fits a configuration in a working folder of its own."""
    monkeypatch.chdir(tmp_path)

    def fitted(config: Path, name: str, *options: str) -> RunFolder:
        weights = f"--model.teacher.init_args.network.weights={teacher}"
        assert run(["fit", "--config", str(config), "--experiment=e", f"--run={name}", weights, *QUIET, *options]) == 0
        return RunFolder(Path("runs/e") / name)

    return fitted


class Unreadable:
    """Training data that may be left out, and not looked at."""

    def __getitem__(self, rows: Any) -> Any:
        if rows != slice(None, 0):
            raise AssertionError("a training image was read")
        return np.empty((0, 8, 8, 1), dtype=np.uint8)

    def __len__(self) -> int:
        raise AssertionError("a training image was read")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a training image was read")


@pytest.fixture
def unreadable(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on no training digit can be read."""
    digits = digits_room.digits

    def poisoned() -> Any:
        return digits()._replace(train_images=Unreadable(), train_labels=Unreadable())

    monkeypatch.setattr(digits_room, "digits", poisoned)


def results(folder: RunFolder) -> dict[str, float]:
    assert run(["test", str(folder.path), *QUIET]) == 0
    found: dict[str, float] = json.loads(folder.results.read_text())
    return found


def kept(folder: RunFolder) -> dict[str, torch.Tensor]:
    """All that is trained: the student, the generator, and the state of its optimizer."""
    checkpoint = torch.load(folder.last, weights_only=True)
    generator = checkpoint["generator"]
    found = dict(checkpoint["state_dict"]) | {f"generator.{key}": part for key, part in generator["weights"].items()}
    for number, state in generator["optimizer"]["state"].items():
        found |= {f"adam.{number}.{key}": torch.as_tensor(part) for key, part in state.items()}
    return found


def rows_of(folder: RunFolder) -> list[dict[str, str]]:
    with folder.metrics.open(newline="") as file:
        return list(csv.DictReader(file))


def test_unreadable_is_unreadable(unreadable: None) -> None:
    with pytest.raises(AssertionError, match="a training image was read"):
        DigitsDataModule().setup()


def test_the_student_learns_without_a_training_image(fit: Fit, unreadable: None) -> None:
    folder = fit(ADVERSARIAL, "a", "--trainer.max_epochs=8", "--model.init_args.grid_every=4")
    found = results(folder)
    assert found["test/teacher_top1"] > 0.9
    assert found["test/top1"] > 0.5
    pictures = sorted((folder.path / "generated").iterdir())
    assert [path.name for path in pictures] == ["epoch-0004.png", "epoch-0008.png"]
    with Image.open(pictures[0]) as one, Image.open(pictures[1]) as other:
        assert one.size == other.size == (8 * 10 + 2, 8 * 10 + 2)  # 8 x 8 images of 8 pixels, 2 between them
        assert one.tobytes() != other.tobytes()
    last = rows_of(folder)[-1]
    for name in ("kd", "generator_bn", "generator_one_hot", "generator_adversarial", "generator_loss"):
        assert last[f"train/{name}"]


def test_dafl_learns_without_a_training_image(fit: Fit, unreadable: None) -> None:
    folder = fit(DAFL, "d", "--trainer.max_epochs=5")
    assert torch.load(folder.last, weights_only=True)["global_step"] == 5 * 20
    assert results(folder)["test/top1"] > 0.25
    first, *_, last = rows_of(folder)
    assert float(last["train/generator_loss"]) < float(first["train/generator_loss"])


@pytest.mark.parametrize(
    ("config", "step"), [(DAFL, 4), pytest.param(ADVERSARIAL, 5, marks=pytest.mark.slow), (ADVERSARIAL, 8)]
)
def test_resumed_equals_uninterrupted(fit: Fit, gone_at: GoneAt, config: Path, step: int) -> None:
    options = [*SHORT, "--checkpoints.every_steps=3", "--trainer.log_every_n_steps=2"]
    options += ["--model.init_args.generator_steps=2", "--model.init_args.generator_every=2"]
    whole = fit(config, "whole", *options)
    with gone_at(step):
        fit(config, "stopped", *options)
    stopped = RunFolder(Path("runs/e/stopped"))
    assert torch.load(stopped.last, weights_only=True)["global_step"] < 10
    assert run(["resume", str(stopped.path)]) == 0
    mine, its = kept(whole), kept(stopped)
    assert mine.keys() == its.keys()
    assert [key for key in mine if not torch.equal(mine[key], its[key])] == []
    assert rows_of(whole) == rows_of(stopped)


def test_a_student_that_saw_other_images_is_exported_alone(fit: Fit) -> None:
    folder = fit(ADVERSARIAL, "a", *SHORT)
    Network("cifar_resnet8", {"widths": [4, 4, 8, 16]}, weights=str(folder.path)).build(10, 1)
    assert all(key.startswith("student.") for key in torch.load(folder.last, weights_only=True)["state_dict"])


def test_out_of_domain_images_teach(teacher: Path, tmp_path: Path, unreadable: None) -> None:
    drawn = np.random.default_rng(0)
    for number in range(600):
        path = tmp_path / f"images/train/{'ab'[number % 2]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (24, 24))
        for _ in range(int(drawn.integers(2, 6))):  # strokes, but no digits
            ImageDraw.Draw(image).line(drawn.integers(0, 24, 4).tolist(), fill=(255, 255, 255), width=3)
        image.save(path)
    pl.seed_everything(0)
    module = OfflineDistiller(
        Network("cifar_resnet8", {"widths": [4, 4, 8, 16]}),
        FrozenTeacher(Network("cifar_resnet8", weights=str(teacher))),
        {"kd": Term(SoftTarget())},
        lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
    )
    folder = ImageFolderDataModule(tmp_path / "images", 50, test_dir="train", image_size=8, scale=(0.7, 1.0), workers=0)
    data = TransferSet(folder, DigitsDataModule(val_fraction=0.0, validate_on_test=True, eval_batch_size=450))
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=8, enable_model_summary=False, default_root_dir=tmp_path, **quiet
    )
    trainer.fit(module, data)
    (found,) = trainer.test(module, data, verbose=False)
    assert found["test/teacher_top1"] > 0.9
    assert found["test/top1"] > 0.4
