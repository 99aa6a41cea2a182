"""The run folder: where everything that one run leaves behind is found."""

import subprocess
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("kd_lightning", "torch", "torchvision", "lightning", "timm", "torchmetrics")


@dataclass(frozen=True)
class RunFolder:
    """The files of a run, by name."""

    path: Path

    @property
    def config(self) -> Path:
        """The complete configuration, written before step 0."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """All that was logged, a row a step."""
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The latest checkpoint."""
        return self.checkpoints / "last.ckpt"

    @property
    def record(self) -> Path:
        """How the training went; there when it has finished."""
        return self.path / "run.json"

    @property
    def results(self) -> Path:
        """The figures of the test."""
        return self.path / "results.json"

    @property
    def predictions(self) -> Path:
        """Class probabilities of each sample, from ``predict``."""
        return self.path / "predictions.csv"

    def best(self) -> Path | None:
        """The checkpoint with the best validation figure, if there is one."""
        found = sorted(self.checkpoints.glob("best*.ckpt"), key=lambda path: path.stat().st_mtime)
        return found[-1] if found else None

    def checkpoint(self, chosen: str) -> Path:
        """The ``last`` or the ``best`` checkpoint.

        Raises:
            ValueError: for another word, FileNotFoundError: if the run does not have it.
        """
        if chosen not in {"last", "best"}:
            raise ValueError(f"--ckpt must be last or best, got {chosen}")
        found = self.last if chosen == "last" else self.best()
        if found is None or not found.exists():
            raise FileNotFoundError(f"{self.path} has no {chosen} checkpoint")
        return found


def broken(path: Path) -> str | None:
    """What is wrong with a checkpoint file, None if its checksums hold.

    torch and safetensors load files with flipped bits; the zip format that torch writes has a checksum for each tensor.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except FileNotFoundError:
        return f"there is no file {path}"
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        return f"{path} is not a whole checkpoint file ({error or 'it is empty'})"
    return None if damaged is None else f"{path} is damaged: the checksum of {damaged} does not hold"


def git_commit() -> str | None:
    """The commit of the working folder, with ``-dirty`` where tracked files differ from it; None outside git."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("-dirty" if changes.stdout.strip() else "")


def provenance() -> dict[str, Any]:
    """Versions and commit that a figure must be read with."""
    return {"versions": {name: metadata.version(name) for name in PACKAGES}, "commit": git_commit()}
