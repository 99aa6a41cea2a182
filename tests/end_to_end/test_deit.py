"""DeiT by the command line on real images: train, test, predict, stop, resume; and what the recipes state."""

import csv
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml

from kd_lightning.cli.commands import run
from kd_lightning.run_folder import RunFolder

CONFIGS = Path(__file__).parents[2] / "configs"
TEACHER, HARD, SOFT = (
    CONFIGS / "digits" / name for name in ("supervised/teacher.yaml", "deit/hard.yaml", "deit/soft.yaml")
)
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")
FIGURES = ("class_head", "distillation_head", "both_softmax", "both_logits")
Fit = Callable[..., RunFolder]
GoneAt = Callable[[int], AbstractContextManager[None]]


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Fits a configuration in a working folder of its own, by a teacher of one epoch."""
    monkeypatch.chdir(tmp_path)
    line = ["--experiment", "e", "--data.init_args.global_batch_size=128", *QUIET]
    assert run(["fit", "--config", str(TEACHER), *line, "--run", "t", "--trainer.max_epochs=1"]) == 0

    def fitted(config: Path, name: str, *options: str) -> RunFolder:
        teacher = ["--model.teacher.init_args.network.weights=runs/e/t", "--model.teacher.init_args.check=false"]
        assert run(["fit", "--config", str(config), *line, "--run", name, *teacher, *options]) == 0
        return RunFolder(Path("runs/e") / name)

    return fitted


def results(folder: RunFolder) -> dict[str, Any]:
    assert run(["test", str(folder.path), *QUIET]) == 0
    found: dict[str, Any] = json.loads(folder.results.read_text())
    return found


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.mark.parametrize("config", [HARD, SOFT], ids=["hard", "soft"])
def test_the_heads_and_both_are_reported(fit: Fit, config: Path) -> None:
    folder = fit(config, "d", "--trainer.max_epochs=4")
    assert all(key.startswith("student.") for key in torch.load(folder.last, weights_only=True)["state_dict"])
    found = results(folder)
    tops = {name: found[f"test/{name}_top1"] for name in FIGURES}
    assert all(0 <= top1 <= 1 for top1 in tops.values()), tops
    assert found["test/top1"] == tops["both_softmax"]
    assert found["test/class_head_loss"] != found["test/distillation_head_loss"]
    assert 0 <= found["test/agreement"] <= 1
    first, *_, last = rows_of(folder.metrics)
    assert all(last[f"val/{name}_top1"] for name in FIGURES)
    for term in ("ce", config.stem):
        assert float(last[f"train/{term}"]) < float(first[f"train/{term}"]), term


def test_what_is_predicted_is_the_headline(fit: Fit) -> None:
    folder = fit(HARD, "d", "--trainer.max_epochs=2", "--model.inference=distillation")
    found = results(folder)
    assert found["test/top1"] == found["test/distillation_head_top1"] != found["test/class_head_top1"]
    assert run(["predict", str(folder.path), *QUIET]) == 0
    rows = rows_of(folder.predictions)
    shares = [[float(value) for key, value in row.items() if key.startswith("p(")] for row in rows]
    assert sum(shares[0]) == pytest.approx(1)
    assert len(rows) == 450


@pytest.mark.parametrize("step", [pytest.param(6, marks=pytest.mark.slow), 15])
def test_resumed_equals_uninterrupted(fit: Fit, gone_at: GoneAt, step: int) -> None:
    average = '--trainer.callbacks=[{"class_path": "kd_lightning.callbacks.StudentEMA", "init_args": {"decay": 0.9}}]'
    random = "--model.student.kwargs.drop_path_rate=0.2"
    options = ["--trainer.max_epochs=2", "--checkpoints.every_steps=4", average, random]
    whole = fit(HARD, "whole", *options)
    with gone_at(step):
        fit(HARD, "stopped", *options)
    stopped = RunFolder(Path("runs/e/stopped"))
    assert run(["resume", str(stopped.path)]) == 0
    ours, its = (torch.load(folder.last, weights_only=True) for folder in (whole, stopped))
    for part in ("state_dict", "ema"):
        assert ours[part].keys() == its[part].keys()
        assert all(torch.equal(ours[part][key], its[part][key]) for key in ours[part]), part
    assert rows_of(whole.metrics) == rows_of(stopped.metrics)
    assert results(whole)["test/top1"] == results(stopped)["test/top1"]


def test_a_student_with_one_head_is_one_message_and_code_2(
    fit: Fit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["fit", "--config", str(HARD), "--experiment", "e", "--run", "x", *QUIET]
    teacher = "--model.teacher.init_args.network.weights=runs/e/t"
    assert run([*line, teacher, "--model.student.name=vit_tiny_patch16_224"]) == 2
    said = capsys.readouterr().err
    assert "student VisionTransformer has no distillation head" in said
    assert "Traceback" not in said


# What the recipes state


def stated(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def terms(path: Path) -> dict[str, tuple[Any, ...]]:
    found = {}
    for name, term in stated(path)["model"]["init_args"]["criteria"].items():
        loss = term["loss"]
        named = (loss["class_path"], loss["init_args"]) if isinstance(loss, dict) else (loss, {})
        found[name] = (*named, term["weight"])
    return found


def test_hard_labels_are_the_papers() -> None:
    files = [path for path in CONFIGS.glob("*/deit/*.yaml") if path != SOFT]
    assert len(files) == 6
    for path in files:
        smoothing = {} if path == HARD else {"label_smoothing": 0.1}
        assert terms(path) == {"ce": ("CrossEntropy", smoothing, 0.5), "hard": ("HardLabel", {}, 0.5)}, path
    assert terms(SOFT) == {"ce": ("CrossEntropy", {}, 0.9), "soft": ("SoftTarget", {"temperature": 3.0}, 0.1)}


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_imagenet_recipe_is_the_papers(size: str) -> None:
    config = stated(CONFIGS / f"imagenet/deit/deit_{size}_distilled_regnety160.yaml")
    model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    assert model["student"] == {"name": f"deit_{size}_distilled_patch16_224", "kwargs": {"drop_path_rate": 0.1}}
    batch = data["global_batch_size"]
    assert (batch, trainer["max_epochs"], model["weight_decay_on"]) == (1024, 300, "matrices")
    assert model["optimizer"] == {
        "class_path": "torch.optim.AdamW",
        "init_args": {"lr": 5e-4 * batch / 512, "weight_decay": 0.05},
    }
    schedule = model["scheduler"]["init_args"]
    rate = model["optimizer"]["init_args"]["lr"]
    assert schedule["warmup_epochs"] == 5
    assert rate * schedule["warmup_factor"] == pytest.approx(1e-6)
    assert rate * schedule["final_factor"] == pytest.approx(1e-5)
    assert data["auto_augment"] == "rand-m9-mstd0.5-inc1"
    assert data["mixing"] == {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "switch_prob": 0.5}
    assert (data["random_erasing"], data["random_erasing_mode"], data["repeats"]) == (0.25, "pixel", 3)
    (average,) = trainer["callbacks"]
    assert average["init_args"]["decay"] == 0.99996


def test_the_fine_tuning_starts_from_the_student_of_224_pixels() -> None:
    config = stated(CONFIGS / "imagenet/deit/deit_base_distilled_384_regnety160.yaml")
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    recipe = model["student"]["weights"]["recipe"]
    assert stated(CONFIGS.parent / recipe)["model"]["init_args"]["student"]["name"] == "deit_base_distilled_patch16_224"
    assert model["student"]["resize"] is True
    assert data["image_size"] == model["teacher"]["init_args"]["network"]["image_size"] == 384
    assert config["trainer"]["max_epochs"] == 30
    assert model["optimizer"]["init_args"]["lr"] == 5e-6 * data["global_batch_size"] / 512


def test_imagenet_teachers_exist_in_timm() -> None:
    for path in CONFIGS.glob("imagenet/deit/*.yaml"):
        network = stated(path)["model"]["init_args"]["teacher"]["init_args"]["network"]
        config = timm.get_pretrained_cfg(network["name"])
        assert config is not None
        assert config.num_classes == 1000


def test_the_cifar_student_has_about_5_million_parameters() -> None:
    config = stated(CONFIGS / "cifar100/deit/deit_tiny_resnet56.yaml")["model"]["init_args"]
    student = config["student"]
    network = timm.create_model(student["name"], num_classes=100, **student["kwargs"])
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(5.4e6, rel=0.02)
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 100)
