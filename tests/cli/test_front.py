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
    ],
)
def test_it_answers_without_torch(words: list[str], answer: str) -> None:
    command = [sys.executable, "-c", ASK, *words]
    root = str(Path(front.__file__).parents[2])
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert answer in done.stdout


def test_the_rest_is_carried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(commands, "run", lambda line: (given.append(line), 2)[1])
    with pytest.raises(SystemExit) as left:
        front.main(["fit", "--config", "a.yaml"])
    assert left.value.code == 2
    assert given == [["fit", "--config", "a.yaml"]]


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    front.main(["help"])
    said = capsys.readouterr().out
    for word in ("fit", "validate", "test", "predict", "resume"):
        assert f"kd-lightning {word} " in said
