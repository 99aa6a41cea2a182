"""How runs are named, and that each has a folder of its own."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kd_lightning.cli.run_naming import INHERITED, claim, name_run
from kd_lightning.run_folder import RunFolder

LAUNCHERS = (INHERITED, "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    yield
    os.environ.pop(INHERITED, None)


def test_the_default_is_the_config_a_stamp_and_the_seed() -> None:
    experiment, run = name_run(None, None, [Path("configs/kd.yaml"), Path("wandb.yaml")], 3)
    assert experiment == "kd"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-\d{6}-seed3", run)


def test_the_processes_that_a_run_starts_agree_on_its_name() -> None:
    first = name_run(None, None, [], 3)
    os.environ[INHERITED] = os.environ[INHERITED] + "x"  # a later second
    assert name_run(None, None, [], 3)[1] == first[1].replace("-seed3", "x-seed3")


def test_what_is_stated_is_taken() -> None:
    assert name_run("e", "r", [Path("kd.yaml")], 3) == ("e", "r")
    assert INHERITED not in os.environ
    assert name_run(None, "r", [], 3) == ("unnamed", "r")


def test_jobs_name_their_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "abc")
    assert name_run("e", None, [], 0) == ("e", "torchrun-abc-seed0")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert name_run("e", None, [], 0) == ("e", "slurm-4711-seed0")


def test_torchrun_without_an_id_needs_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(ValueError, match="--run NAME is needed under torchrun without --rdzv-id"):
        name_run("e", None, [], 0)
    assert name_run("e", "r", [], 0) == ("e", "r")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\\b"])
def test_a_run_is_one_folder(name: str) -> None:
    with pytest.raises(ValueError, match=r"--run must be the name of one folder, got " + re.escape(repr(name))):
        name_run("e", name, [], 0)


@pytest.mark.parametrize("name", [".", "..", "a/b"])
def test_an_experiment_is_one_folder(name: str) -> None:
    with pytest.raises(ValueError, match=r"--experiment must be the name of one folder, got " + re.escape(repr(name))):
        name_run(name, "r", [], 0)


def test_a_folder_is_claimed_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs/e/r")
    claim(folder)
    assert folder.path.is_dir()
    with pytest.raises(ValueError, match=r"runs/e/r is another run's folder: .*kd-lightning resume .*runs/e/r"):
        claim(folder)
