"""Every method's configuration lowers its distillation term, and that term's gradient reaches the student."""

import csv
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import kd_lightning.losses
from kd_lightning.cli.commands import run
from kd_lightning.distillers import OfflineDistiller
from kd_lightning.losses import Loss
from kd_lightning.models import Network, save_weights

CONFIGS = Path(__file__).parents[2] / "configs/cifar100"
TEACHERS = {path.stem for path in CONFIGS.glob("supervised/*.yaml")}
# Of the pairs for soft targets, which differ in the networks alone, one.
PAIR = "kd_resnet56_resnet20"
FILES = [
    path
    for path in sorted(CONFIGS.glob("offline/*.yaml"))
    if path.stem == PAIR or not any(path.stem.startswith(f"kd_{teacher}_") for teacher in TEACHERS)
]
# The same networks with fewer blocks; of some methods the term does not fall so soon in those.
SHALLOWER = {"cifar_resnet56": "cifar_resnet14", "cifar_resnet20": "cifar_resnet8"}
WHOLE = {"attention_probabilities", "ofa", "vid"}
OF_THE_LABELS = {"ce", "ce_strong"}
MOVING = {"dino", "mean_teacher"}  # the teacher starts as the student, and the term need not fall
# One small step after another, so that the term must fall; the published rate belongs to batches of 64.
OPTIONS = (
    "--data.init_args.global_batch_size=20",
    "--data.init_args.eval_batch_size=50",
    "--model.optimizer.init_args.lr=0.02",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.limit_val_batches=0",
    "--experiment=e",
    "--run=r",
)


def stated(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def shallower(path: Path, folder: Path) -> Path:
    """A copy of a configuration in a folder, with shallower networks."""
    copy = folder / path.name
    copy.write_text(re.sub("|".join(SHALLOWER), lambda found: SHALLOWER[found[0]], path.read_text()))
    return copy


@torch.no_grad()
def calibrated(network: nn.Module) -> nn.Module:
    """The network with the statistics of its batch normalisation as noise gives them: else its features explode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()(torch.randn(32, 3, 32, 32))
    return network


def frozen(teacher: dict[str, Any] | None, key: str = "--model.teacher") -> Iterator[tuple[str, dict[str, Any]]]:
    """Option and arguments of each frozen teacher: of one, or of the members of an ensemble."""
    init = (teacher or {}).get("init_args", {})
    if "network" in init:
        yield f"{key}.init_args", init
    if "teacher" in init:
        yield from frozen(init["teacher"], f"{key}.init_args.teacher")
    for name, member in init.get("teachers", {}).items():
        yield from frozen(member, f"{key}.init_args.teachers.{name}")


def teacher_options(path: Path, folder: Path) -> list[str]:
    """The configuration's teachers with random weights, wherever they are named."""
    init = stated(path)["model"]["init_args"]
    student, options, weights = init["student"], [], ""
    for number, (key, arguments) in enumerate(frozen(init["teacher"])):
        network, weights = arguments["network"], str(folder / f"teacher{number}.safetensors")
        save_weights(calibrated(Network(network["name"], network.get("kwargs", {})).build(100)), Path(weights))
        options += [f"{key}.network.weights={weights}", f"{key}.check=false"]
    if "teacher" in student.get("kwargs", {}):
        kwargs = student["kwargs"] | {"teacher": student["kwargs"]["teacher"] | {"weights": weights}}
        options.append(f"--model.student.kwargs={kwargs}")
    return options


class Watch:
    """The largest gradient that each distillation term gives to the student in the first step in which it is active."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gradients: dict[str, float] = {}
        original = OfflineDistiller.training_step

        def training_step(module: OfflineDistiller, batch: Any, batch_idx: int) -> Tensor:
            values: dict[str, Tensor] = {}
            handles = [
                loss.register_forward_hook(lambda _, __, value, name=name: values.__setitem__(name, value))
                for name, loss in module.criteria.losses.items()
                if name not in OF_THE_LABELS
            ]
            result = original(module, batch, batch_idx)
            for handle in handles:
                handle.remove()
            assert module.student is not None
            trained = [parameter for parameter in module.student.parameters() if parameter.requires_grad]
            for name, value in values.items():
                if name not in self.gradients:
                    found = torch.autograd.grad(value, trained, retain_graph=True, allow_unused=True)
                    self.gradients[name] = max((float(g.abs().max()) for g in found if g is not None), default=0.0)
            return result

        monkeypatch.setattr(OfflineDistiller, "training_step", training_step)


def epochs(folder: Path) -> dict[str, list[float]]:
    """The mean of each term in each epoch in which it was active."""
    means: dict[str, list[float]] = defaultdict(list)
    with (folder / "metrics.csv").open() as opened:
        for row in csv.DictReader(opened):
            for name, value in row.items():
                if name.startswith("train/") and value:
                    means[name.removeprefix("train/")].append(float(value))
    return means


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_distillation_term_falls_and_reaches_the_student(
    path: Path, tiny_cifar100_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert path.read_text().splitlines()[0] == f"# kd-lightning fit --config configs/cifar100/offline/{path.name}"
    monkeypatch.chdir(tmp_path)
    if path.stem not in WHOLE:
        path = shallower(path, tmp_path)
    watch = Watch(monkeypatch)
    terms = stated(path)["model"]["init_args"]["criteria"]
    distilling = [name for name, term in terms.items() if name not in OF_THE_LABELS]
    # The labels pull elsewhere than a teacher that knows nothing; only WSLD's weights need them.
    options = [f"--model.criteria.{name}.weight=0" for name in terms if name not in distilling and path.stem != "wsld"]
    first, last = 0, 4
    if "crd" in terms and path.stem != "in_batch_crd":
        # Of 100 samples. The term rises until the bank holds what the networks say; then it falls, if slowly.
        still = '{"default": {"flip": false, "crop_padding": 0}}'
        options += ["--model.criteria.crd.loss.init_args.negatives=32", f"--data.init_args.views={still}"]
        first, last = 2, 16
    if path.stem == "eskd":
        options.append("--model.criteria.kd.weight.init_args.end=4")  # to the end, as nothing comes after it here
    if path.stem == "ft":
        # The paraphraser learns first, here for two epochs, and not from the student: its error is watched.
        options.append("--model.criteria.ft.loss.init_args.paraphraser_epochs=2")
        last = 2
    command = ["fit", "--config", str(path), f"--data.init_args.root={tiny_cifar100_root}", *OPTIONS, *options]
    command.append(f"--trainer.max_epochs={max(last, 4)}")
    assert run([*command, *teacher_options(path, tmp_path)]) == 0
    means = epochs(tmp_path / "runs/e/r")
    active = [name for name in distilling if name in means]
    assert active
    for name in active:
        watched = means[name][first:last]
        assert watched[-1] < watched[0] or path.stem in MOVING, (name, watched)
        assert name == "ft" or watch.gradients[name] > 0


def test_every_loss_has_a_configuration() -> None:
    used = "\n".join(path.read_text() for path in CONFIGS.parent.rglob("*.yaml"))
    losses = [
        name
        for name in kd_lightning.losses.__all__
        if isinstance(found := getattr(kd_lightning.losses, name), type) and issubclass(found, Loss)
    ]
    without = [name for name in losses if name not in used]
    assert sorted(without) == ["Loss", "ReferenceSoftTarget"]  # which is there for comparison with the reference code
