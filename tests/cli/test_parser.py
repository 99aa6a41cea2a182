"""What is not known or not allowed is named, with what was probably meant."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from timm import create_model

import kd_lightning.models  # noqa: F401  timm knows its networks then
from kd_lightning import trust
from kd_lightning.cli.commands import run
from kd_lightning.cli.parser import nearest
from kd_lightning.run_folder import RunFolder

CONFIGS = Path(__file__).parents[2] / "configs"
TEACHER, KD = CONFIGS / "digits/supervised/teacher.yaml", CONFIGS / "digits/offline/kd.yaml"
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")
SHORT = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1")
LOSS = """
import pathlib
import torch
from kd_lightning.losses import Loss

pathlib.Path("imported").touch()


class Mine(Loss):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, student: torch.Tensor, teacher: torch.Tensor | None, target: torch.Tensor) -> torch.Tensor:
        return self.scale * torch.nn.functional.cross_entropy(student, target)
"""
Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working folder of its own; what was allowed before is allowed after."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trust, "ALLOWED", set(trust.BUILT_IN))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("my_losses", None)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """What a command line with exit code 2 says."""

    def said(*line: str) -> str:
        code: Any
        try:
            code = run(line)
        except SystemExit as left:
            code = left.code
        assert code == 2
        assert not Path("runs").exists()
        return capsys.readouterr().err

    return said


def edited(config: Path, old: str, new: str) -> str:
    text = config.read_text()
    assert old in text
    Path("edited.yaml").write_text(text.replace(old, new))
    return "edited.yaml"


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("--trainer.max_epoch=3", "trainer.max_epoch: did you mean trainer.max_epochs?"),
        ("--model.init_args.optimizr=torch.optim.SGD", "optimizr: did you mean optimizer?"),
        ("--model.optimizr=torch.optim.SGD", "optimizr: did you mean optimizer?"),
        ("--data.init_args.globl_batch_size=64", "globl_batch_size: did you mean global_batch_size?"),
        ("--experimnt=e", "experimnt: did you mean experiment?"),
        ("--checkpoints.evry_steps=5", "checkpoints.evry_steps: did you mean checkpoints.every_steps?"),
    ],
)
def test_an_unknown_option_gives_the_nearest(refused: Refused, option: str, hint: str) -> None:
    assert hint in refused("fit", "--config", str(TEACHER), option)


@pytest.mark.parametrize(
    ("old", "new", "hint"),
    [
        ("temperature", "temprature", "temprature: did you mean temperature?"),
        ("weight: 0.9", "wieght: 0.9", "wieght: did you mean weight?"),
        ("momentum", "momentm", "momentm: did you mean momentum?"),
        ("global_batch_size", "globl_batch_size", "globl_batch_size: did you mean global_batch_size?"),
        ("max_epochs", "max_epoch", "trainer.max_epoch: did you mean trainer.max_epochs?"),
        ("seed_everything", "seed_everithing", "seed_everithing: did you mean seed_everything?"),
        ("criteria:", "critera:", "did you mean criteria?"),
    ],
)
def test_an_unknown_key_of_a_file_gives_the_nearest(refused: Refused, old: str, new: str, hint: str) -> None:
    assert hint in refused("fit", "--config", edited(KD, old, new))


def test_an_abbreviation_is_not_expanded(refused: Refused) -> None:
    assert "--trainer.max_ep" in refused("fit", "--config", str(TEACHER), "--trainer.max_ep=3")


def test_an_unknown_command(refused: Refused) -> None:
    assert "invalid choice: 'fti'" in refused("fti", "--config", str(TEACHER))


@pytest.mark.parametrize(
    ("unknown", "known", "meant"),
    [
        ("trainer.max_epoch", {"trainer.max_epochs", "trainer.max_steps"}, "trainer.max_epochs"),
        ("max_epoch", {"trainer.max_epochs"}, "trainer.max_epochs"),
        ("critera.kd.weight", {"criteria", "student"}, "criteria"),
        ("zzz", {"criteria", "student"}, None),
        ("anything", set(), None),
    ],
)
def test_nearest(unknown: str, known: set[str], meant: str | None) -> None:
    assert nearest(unknown, known) == meant


@pytest.mark.parametrize(("text", "message"), [("a: 1\na: 2\n", "line 2"), ("a: .inf\n", "line 1"), ("a: {", "line 1")])
def test_a_faulty_file_is_named_with_the_line(refused: Refused, text: str, message: str) -> None:
    Path("c.yaml").write_text(text)
    said = refused("fit", "--config", "c.yaml")
    assert "c.yaml" in said
    assert message in said


def test_a_missing_file_is_named(refused: Refused) -> None:
    assert "there is no configuration nowhere.yaml" in refused("fit", "--config=nowhere.yaml")


def test_a_class_path_outside_is_refused(refused: Refused) -> None:
    said = refused("fit", "--config", edited(KD, "class_path: SoftTarget", "class_path: os.system"))
    assert "'os.system' may not be imported: if you trust it, allow it with --allow os" in said


def test_a_module_of_the_working_folder_is_not_even_imported(refused: Refused) -> None:
    Path("my_losses.py").write_text(LOSS)
    sys.path.insert(0, str(Path.cwd()))
    config = edited(KD, "class_path: SoftTarget, init_args: {temperature: 4.0}", "class_path: my_losses.Mine")
    assert "--allow my_losses" in refused("fit", "--config", config)
    assert not Path("imported").exists()


def test_an_allowed_module_of_the_working_folder_is_used() -> None:
    Path("my_losses.py").write_text(LOSS)
    assert str(Path.cwd()) not in sys.path
    config = edited(KD, "SoftTarget, init_args: {temperature: 4.0}", "my_losses.Mine, init_args: {scale: 2.0}")
    torch.save(create_model("cifar_resnet8", num_classes=10, in_chans=1).state_dict(), "teacher.pt")
    teacher = ["--model.teacher.init_args.network.weights=teacher.pt", "--model.teacher.init_args.check=false"]
    named = ["--config", config, "--experiment", "e", "--run", "r"]
    assert run(["fit", "--allow", "my_losses", *named, *teacher, *QUIET, *SHORT]) == 0
    assert Path("imported").exists()
    assert "train/kd" in RunFolder(Path("runs/e/r")).metrics.read_text().splitlines()[0]
    assert sys.path[-1] == str(Path.cwd())  # last: it hides no installed module


def test_unknown_class_is_answered_with_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "kd.yaml"
    config.write_text(KD.read_text().replace("SoftTarget", "SoftTargt"))
    with pytest.raises(SystemExit) as left:
        run(["fit", "--config", str(config), *QUIET])
    assert left.value.code == 2
    assert "SoftTargt: did you mean SoftTarget?" in capsys.readouterr().err
