"""Help of a command: short, by topic, and by class; compared with what Python says after an import."""

import inspect
import subprocess
import sys

import lightning.pytorch as pl
import pytest
import torch

from kd_lightning import callbacks, datamodules, distillers, losses, models
from kd_lightning.cli import front
from kd_lightning.cli.help import TOPICS, about, answer, plain, public
from kd_lightning.cli.sources import arguments, of_kind

COMMANDS = ("fit", "validate", "test", "predict", "resume")


def said(topic: str) -> str:
    return answer("fit", topic)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_first_screen_is_one(command: str) -> None:
    lines = answer(command, None).splitlines()
    assert lines[0].startswith(f"kd-lightning {command}: ")
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_it_names_every_topic(command: str) -> None:
    for topic in (*TOPICS, "CLASS", "all"):
        assert f"  kd-lightning {command} --help {topic} " in answer(command, None)


def test_the_trainers_arguments_are_lightnings() -> None:
    told = [line.split()[0] for line in said("trainer").splitlines()[2:] if line.startswith("  ") and line[2] != " "]
    assert told == list(inspect.signature(pl.Trainer).parameters)
    assert "  max_epochs = null " in said("trainer")


@pytest.mark.parametrize(
    ("kind", "room", "root"),
    [
        ("schemes", distillers, distillers.Distiller),
        ("losses", losses, losses.Loss),
        ("data modules", datamodules, pl.LightningDataModule),
        ("teachers", models, models.Teacher),
    ],
)
def test_classes_have_the_arguments_that_python_knows(kind: str, room: object, root: type) -> None:
    for name, node in of_kind(kind).items():
        known = getattr(room, name)
        assert issubclass(known, root)
        if "__init__" in vars(known):
            parameters = inspect.signature(known).parameters
            told = arguments(node)
            assert [each.name.lstrip("*") for each in told] == list(parameters), name
            needed = [each.name for each in told if each.default is None and not each.name.startswith("*")]
            kinds = (inspect.Parameter.VAR_KEYWORD,)
            assert needed == [p.name for p in parameters.values() if p.default is p.empty and p.kind not in kinds], name
            assert all(each.meaning for each in told), name


def test_topics_name_the_classes() -> None:
    for topic, kinds in {"model": ("schemes", "teachers"), "data": ("data modules",)}.items():
        told = said(topic)
        assert all(f"\n  {name}\n" in told for kind in kinds for name in of_kind(kind))


def test_optimizers_are_torchs() -> None:
    told = {line.split()[0] for line in said("optimizer").splitlines() if line.startswith("  torch.optim.")}
    optimizer = torch.optim.Optimizer
    found = {name: kind for name, kind in vars(torch.optim).items() if isinstance(kind, type)}
    assert told == {
        f"torch.optim.{name}" for name, kind in found.items() if issubclass(kind, optimizer) and kind is not optimizer
    }
    assert "\n  ShareMultiStepLR\n" in said("optimizer")


def test_checkpoints_are_told_with_their_defaults() -> None:
    told = said("checkpoints")
    assert "  every_epochs = 1 " in told
    assert all(f"  {name} = " in told for name in inspect.signature(callbacks.Checkpoints).parameters)


def test_trackers_have_overlays() -> None:
    assert "\nlogger/wandb.yaml " in said("logger")


@pytest.mark.parametrize("name", ["SoftTarget", "kd_lightning.losses.SoftTarget"])
def test_a_class_is_told_with_its_arguments(name: str) -> None:
    told = said(name)
    assert told.startswith("SoftTarget: T^2 KL(p_t || p_s)")
    assert "\n  temperature: float = 4.0\n      T > 0; 4 in the standard CIFAR-100 protocol" in told
    assert "\n  standardize: bool = false\n" in told
    assert "\n  student: NetworkLike, needed\n" in said("OfflineDistiller")


def test_every_exported_class_is_told() -> None:
    rooms = (distillers, models, losses, datamodules, callbacks)
    exported = {name: getattr(room, name) for room in rooms for name in room.__all__}
    known = public()
    kinds = {name: kind for name, kind in exported.items() if isinstance(kind, type)}
    assert set(known) == {
        name for name, kind in kinds.items() if name == kind.__name__
    }  # an alias is told as its class
    for name, node in known.items():
        first = (inspect.getdoc(exported[name]) or "").splitlines()[0]
        assert about(node).startswith(f"{name}: {plain(first)}\n")


def test_an_unknown_topic_gives_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"--help takes trainer, model, .*, all, .*, got 'trainr', did you mean trainer"
    ):
        said("trainr")
    with pytest.raises(ValueError, match="got 'SoftTargt', did you mean SoftTarget"):
        said("SoftTargt")


@pytest.mark.parametrize("topic", [["trainer"], ["optimizer"]])
def test_no_answer_imports_torch(topic: list[str]) -> None:
    ask = "import sys; from kd_lightning.cli.front import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", ask, "fit", "--config", "x.yaml", "--help", *topic]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_everything_is_lightnings_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        front.main(["fit", "--help", "all"])
    assert left.value.code == 0
    told = capsys.readouterr().out
    assert "--trainer.gradient_clip_val" in told
    assert "--checkpoints.keep_every_epochs" in told
