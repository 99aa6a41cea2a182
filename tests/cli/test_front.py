"""The thin front: help and version at once, the rest in the same process."""

import subprocess
import sys
from pathlib import Path

import pytest

from kd_lightning import __version__
from kd_lightning.cli import commands, front

HEAVY = ["torch", "lightning", "timm", "jsonargparse", "torchvision", "numpy"]
ASK = f"""
import sys
from kd_lightning.cli.front import main
main(sys.argv[1:])
found = [name for name in {HEAVY} if name in sys.modules]
sys.exit(f"imported {{found}}" if found else 0)
"""


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ([], "usage:"),
        (["--help"], "usage:"),
        (["-h"], "usage:"),
        (["--version"], f"kd-lightning {__version__}\n"),
        (["list", "schemes"], "BornAgainDistiller  Trains"),
        (["list", "--help"], "kd-lightning list TOPIC [PATTERN]"),
        (["fit", "--help"], "kd-lightning fit --config CONFIG"),
        (["test", "RUN", "-h"], "kd-lightning test RUN_DIR"),
        (["resume", "--help", "all"], "kd-lightning resume RUN_DIR"),
        (["fit", "--config", "a.yaml", "--help", "SoftTarget", "--seed_everything=1"], "temperature: float = 4.0"),
    ],
)
def test_it_answers_without_torch(words: list[str], answer: str) -> None:
    command = [sys.executable, "-c", ASK, *words]
    root = str(Path(front.__file__).parents[2])
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert answer in done.stdout


@pytest.mark.parametrize(
    "line",
    [
        ["fit", "--config", "a.yaml"],
        ["fit", "--help", "all"],
        ["report", "--help"],
        ["export", "--help"],
        ["sweep", "--help"],
        ["fit", "--model.help", "OfflineDistiller"],
    ],
)
def test_the_rest_is_carried_out(line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(commands, "run", lambda line: (given.append(line), 2)[1])
    with pytest.raises(SystemExit) as left:
        front.main(line)
    assert left.value.code == 2
    assert given == [line]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["list", "networks"], "list knows models, losses, schemes, configs, got 'networks'"),
        (["fit", "--help", "SoftTargt"], "got 'SoftTargt', did you mean SoftTarget"),
    ],
)
def test_a_question_without_an_answer(line: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        front.main(line)
    assert left.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("kd-lightning: error: ")
    assert message in said.err


def test_a_reader_may_leave_early() -> None:
    command = [sys.executable, "-m", "kd_lightning", "list", "models"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as told:
        assert told.stdout is not None
        assert told.stderr is not None
        told.stdout.close()
        assert told.stderr.read() == ""
    assert told.returncode == 0


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    front.main(["help"])
    said = capsys.readouterr().out
    for word in ("fit", "validate", "test", "predict", "resume", "report", "export", "sweep", "list"):
        assert f"kd-lightning {word} " in said
