"""Mixup and CutMix with every scheme: all see the same mixed pixels, and what should fall falls."""

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from kd_lightning.batch import Batch, as_batch
from kd_lightning.cli.commands import run
from kd_lightning.run_folder import RunFolder

CONFIGS = Path(__file__).parents[2] / "configs/digits"
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")
MIXING = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "switch_prob": 0.5}
MIXED = tuple(f"--data.mixing.{name}={value}" for name, value in MIXING.items())
TEACHERS = ("supervised/teacher", "supervised/wide_teacher", "assistants/assistant")
Fit = Callable[..., RunFolder]


@dataclass
class Step:
    """A training step: its batch, and what networks saw, by whether a gradient was to flow."""

    batch: Batch
    seen: dict[bool, list[Tensor]] = field(default_factory=lambda: {True: [], False: []})

    def views(self, learning: bool) -> set[str]:
        """Names of the views that were seen; ``?`` for pixels that are of none."""
        named = self.batch.images.items()
        return {next((name for name, view in named if torch.equal(view, x)), "?") for x in self.seen[learning]}


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Every training step from here on."""
    found: list[Step] = []
    original = Strategy.training_step

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        shapes = {view.shape for view in found[-1].batch.images.values()}  # a teacher may be tried on noise before
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].shape in shapes:
            found[-1].seen[torch.is_grad_enabled()].append(inputs[0].detach().clone())

    def training_step(strategy: Strategy, *arguments: Any) -> Any:
        found.append(Step(as_batch(arguments[0])))
        handle = register_module_forward_pre_hook(look)
        try:
            return original(strategy, *arguments)
        finally:
            handle.remove()

    monkeypatch.setattr(Strategy, "training_step", training_step)
    return found


def recipes(value: Any, key: str = "--model") -> Iterator[tuple[str, str]]:
    """Key and configuration of every teacher whose weights are a recipe."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "weights" and isinstance(inner, dict) and "recipe" in inner:
                yield f"{key}.weights", inner["recipe"]
            else:
                yield from recipes(inner, f"{key}.{name}")


def known(path: Path, runs: Mapping[str, str]) -> list[str]:
    """Options by which a configuration takes its teachers from runs by their recipe."""
    return [f"{key}={runs[recipe]}" for key, recipe in recipes(yaml.safe_load(path.read_text())["model"])]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Runs of teachers that know a little, by the recipe."""
    folder = tmp_path_factory.mktemp("teachers")
    found: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in TEACHERS:
            path, stem = CONFIGS / f"{name}.yaml", Path(name).stem
            options = ["--trainer.max_epochs=4", "--experiment=t", f"--run={stem}", *QUIET, *known(path, found)]
            assert run(["fit", "--config", str(path), *options]) == 0
            found[f"configs/digits/{name}.yaml"] = str(folder / "runs/t" / stem)
    return found


@pytest.fixture
def fit(teachers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Fits a configuration of the digits in a working folder of its own, by teachers that are there."""
    monkeypatch.chdir(tmp_path)

    def fitted(config: str, *options: str, code: int = 0) -> RunFolder:
        path = CONFIGS / f"{config}.yaml"
        line = ["fit", "--config", str(path), "--experiment=e", "--run=r", *QUIET, "--trainer.log_every_n_steps=5"]
        assert run([*line, *known(path, teachers), *options]) == code
        return RunFolder(Path("runs/e/r"))

    return fitted


def terms(folder: RunFolder) -> dict[str, list[float]]:
    """The values of each training term, in the order of the steps."""
    found: dict[str, list[float]] = {}
    with folder.metrics.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if name.startswith("train/") and value:
                    found.setdefault(name.removeprefix("train/"), []).append(float(value))
    return found


@dataclass(frozen=True)
class Scheme:
    """How a configuration is run in short.

    Attributes:
        config: Under ``configs/digits``.
        options: Beside mixing.
        falling: Terms that must fall.
        student: Views that those who learn see.
        teacher: Views that those see who only teach; none where nobody does.
    """

    config: str
    falling: Sequence[str]
    options: Sequence[str] = ()
    student: Sequence[str] = ("default",)
    teacher: Sequence[str] = ("default",)


ALONE = ("--trainer.devices=1", "--trainer.strategy=auto", "--model.criteria.kd.weight=1.0")
PEERS = ("a_ce", "b_ce")
TWO = ("default", "second")
LOCAL = ("local1", "local2", "local3", "local4")
GENERATIONS = ("--model.generations=2", "--model.epochs_per_generation=2", "--trainer.max_epochs=4")
DEIT = ("--model.scheduler.init_args.warmup_epochs=0", "--trainer.max_epochs=3", "--trainer.log_every_n_steps=20")
KDCL = "--model.collaboration.init_args.ensemble="
QUICK = ("kd", "dml", "ban", "deit hard")  # the others are slow together
SCHEMES = {
    "alone": Scheme("supervised/student", ["ce"], teacher=()),
    "kd": Scheme("offline/kd", ["kd"]),
    "ensemble": Scheme("offline/ensemble", ["kd"]),
    "ensemble by label": Scheme("offline/ensemble", ["kd"], ["--model.teacher.init_args.weights=confidence"]),
    "mean teacher": Scheme("offline/mean_teacher", ["ce"]),
    "tf-kd": Scheme("offline/tf_kd", ["ce", "tf"], teacher=()),
    "dino": Scheme("offline/dino", [], (), ("default", "global", *LOCAL), ("default", "global")),
    "assistants": Scheme("assistants/student", ["kd"]),
    "densely guided": Scheme("assistants/densely_guided", ["kd_teacher", "kd_assistant"]),
    "dml": Scheme("online/dml", PEERS, teacher=()),
    "kdcl naive": Scheme("online/kdcl", PEERS, [f"{KDCL}naive"], TWO, ()),
    "kdcl min-logit": Scheme("online/kdcl", PEERS, [f"{KDCL}min_logit"], TWO, ()),
    "kdcl linear": Scheme("online/kdcl", PEERS, [f"{KDCL}linear"], TWO, ()),
    "codistillation": Scheme("online/codistillation", PEERS, ALONE),
    "own teacher": Scheme("online/be_your_own_teacher", ["net_ce", "net_1_ce", "net_2_ce"], teacher=()),
    "one": Scheme("online/one", ["one_ce", "one_1_ce", "one_2_ce", "one_3_ce"], teacher=()),
    "ban": Scheme("born_again/ban", ["ce", "kd"], GENERATIONS),
    "cwtm": Scheme("born_again/cwtm", ["ce", "cwtm"], GENERATIONS),
    "dkpp": Scheme("born_again/dkpp", ["ce", "dkpp"], GENERATIONS),
    "deit hard": Scheme("deit/hard", ["ce", "hard"], DEIT),
    "deit soft": Scheme("deit/soft", ["ce", "soft"], DEIT),
}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SCHEMES]
)
def test_all_see_the_mixed_pixels_and_learn(name: str, fit: Fit, steps: list[Step]) -> None:
    scheme = SCHEMES[name]
    folder = fit(scheme.config, "--trainer.max_epochs=2", *scheme.options, *MIXED)
    for step in steps:
        target = step.batch.target
        assert target.shape[1:] == (10,)
        assert target.sum(dim=1).allclose(torch.ones(len(target)))
        assert (target.amax(dim=1) < 1).float().mean() > 0.5
        assert step.views(learning=True) == set(scheme.student)
        assert step.views(learning=False) <= set(scheme.teacher)
    assert steps[-1].views(learning=False) == set(scheme.teacher)  # the first generation has no teacher
    values = terms(folder)
    assert all(math.isfinite(value) for each in values.values() for value in each)
    for term in scheme.falling:
        assert values[term][-1] < values[term][0], (term, values[term])


def test_every_scheme_is_here() -> None:
    tried = {scheme.config for scheme in SCHEMES.values()}
    of_a_scheme = {
        str(path.relative_to(CONFIGS).with_suffix(""))
        for path in CONFIGS.rglob("*.yaml")
        if path.parent.name not in ("supervised", "data_free") and "OfflineDistiller" not in path.read_text()
    }
    # The same formula with one more term of the labels.
    assert of_a_scheme - tried == {"born_again/ban_labels"}


def test_what_is_mixed_differs_from_what_is_not(fit: Fit, steps: list[Step]) -> None:
    short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]
    fit("offline/kd", *short)
    plain = steps.copy()
    steps.clear()
    fit("offline/kd", *short, *MIXED, "--data.mixing.prob=0.5", "--run=mixed")
    for step, unmixed in zip(steps, plain, strict=True):
        assert torch.equal(cast(Tensor, step.batch.index), cast(Tensor, unmixed.batch.index))
        mixed = step.batch.target.amax(dim=1) < 1
        assert 0.25 < mixed.float().mean() < 0.6
        changed = (step.batch.image != unmixed.batch.image).flatten(1).any(dim=1)
        assert changed[mixed].float().mean() > 0.9  # a box may be of pixels that are black in both
        assert torch.equal(step.batch.target[~changed].argmax(dim=1), unmixed.batch.target[~changed])


# What mixing cannot do

GENERATED = ("--trainer.max_epochs=1", "--data.steps_per_epoch=2")


def test_a_memory_bank_refuses_a_sample_that_is_of_two(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    criteria = {"ce": {"loss": "CrossEntropy", "teacher": None}, "crd": {"loss": "CRD", "weight": 0.8}}
    fit("offline/kd", f"--model.criteria={json.dumps(criteria)}", "--trainer.max_epochs=1", *MIXED, code=2)
    assert "CRD cannot take mixed targets: its bank has a row for a sample" in capsys.readouterr().err


@pytest.mark.parametrize("config", ["data_free/dafl", "data_free/adversarial"])
def test_generated_images_are_not_mixed(config: str, fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit(config, *GENERATED, "--data.data.init_args.mixing.mixup_alpha=0.8", code=2)
    said = capsys.readouterr().err
    assert "which are not read, got Mixing(mixup_alpha=0.8" in said
    assert "generated images are not mixed" in said


def transfer(images: dict[str, Any], data: dict[str, Any]) -> list[str]:
    """Options that take the digits as a transfer set for the digits, without labels."""
    digits = {"images": images, "data": {"val_fraction": 0.0, "validate_on_test": True} | data}
    modules = {name: {"class_path": "DigitsDataModule", "init_args": found} for name, found in digits.items()}
    kd = {"kd": {"loss": {"class_path": "SoftTarget", "init_args": {"temperature": 4.0}}}}
    chosen = {"data": {"class_path": "TransferSet", "init_args": modules}, "model.criteria": kd}
    return [*(f"--{key}={json.dumps(value)}" for key, value in chosen.items()), "--trainer.max_epochs=2"]


def test_a_transfer_set_is_mixed_without_labels(fit: Fit, steps: list[Step]) -> None:
    folder = fit("offline/kd", *transfer({"mixing": MIXING}, {}))
    for step in steps:
        assert set(step.batch.target.tolist()) == {-1}
        assert step.views(learning=True) == step.views(learning=False) == {"default"}
    values = terms(folder)["kd"]
    assert values[-1] < values[0]


def test_a_transfer_set_cannot_mix_what_is_not_read(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit("offline/kd", *transfer({}, {"mixing": MIXING}), code=2)
    assert "of its training images, which are not read" in (said := capsys.readouterr().err)
    assert "state it for the images" in said
