"""The run folder: its files by name, how they are written, and what they are read with."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

from kd_lightning import __version__
from kd_lightning.run_folder import RunFolder, broken, git_commit, provenance


def test_the_names_of_the_files() -> None:
    folder = RunFolder(Path("runs/e/r"))
    files = (folder.config, folder.metrics, folder.last, folder.record, folder.results, folder.predictions)
    assert [path.relative_to(folder.path).as_posix() for path in files] == [
        "config.yaml",
        "metrics.csv",
        "checkpoints/last.ckpt",
        "run.json",
        "results.json",
        "predictions.csv",
    ]


def test_the_newest_best_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.best() is None
    folder.checkpoints.mkdir()
    folder.last.touch()
    assert folder.best() is None
    for age, name in enumerate(["best-v1.ckpt", "best.ckpt"]):
        (folder.checkpoints / name).touch()
        os.utime(folder.checkpoints / name, (1000 - age, 1000 - age))
    assert folder.best() == folder.checkpoints / "best-v1.ckpt"


def test_a_whole_checkpoint_is_not_broken(tmp_path: Path) -> None:
    torch.save({"weight": torch.arange(100.0)}, tmp_path / "a.ckpt")
    assert broken(tmp_path / "a.ckpt") is None


@pytest.mark.parametrize("at", range(10))
def test_a_flipped_bit_of_a_tensor_is_found(tmp_path: Path, at: int) -> None:
    path, values = tmp_path / "a.ckpt", torch.arange(100.0)
    torch.save({"weight": values}, path)
    content = bytearray(path.read_bytes())
    content[content.find(values.numpy().tobytes()) + 40 * at] ^= 1 << (at % 8)
    path.write_bytes(content)
    assert re.search(r"a\.ckpt is damaged: the checksum of .*data/0 does not hold", broken(path) or "")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a checkpoint"])
def test_what_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.ckpt").write_bytes(content)
    assert "a.ckpt is not a whole checkpoint file" in (broken(tmp_path / "a.ckpt") or "")


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    assert broken(tmp_path / "a.ckpt") == f"there is no file {tmp_path / 'a.ckpt'}"


def git(*words: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    return subprocess.run(["git", *identity, *words], capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None
    git("init")
    Path("a").write_text("1")
    git("add", "a")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", commit)
    assert git_commit() == commit
    Path("untracked").touch()
    assert git_commit() == commit
    Path("a").write_text("2")
    assert git_commit() == f"{commit}-dirty"


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() is None


def test_what_a_figure_must_be_read_with() -> None:
    found = provenance()
    assert set(found) == {"versions", "commit"}
    assert found["versions"]["kd_lightning"] == __version__
