"""A run that another process brings to its end."""

import sys
from pathlib import Path

import pytest

from kd_lightning import trust
from kd_lightning.cli.child import in_a_process, to_its_end
from kd_lightning.run_folder import RunFolder


def test_a_run_is_begun_gone_on_with_or_left(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "e" / "r")
    begun = ["fit", "--config", "c.yaml", "--experiment", "e", "--run", "r"]
    assert to_its_end(folder, ["--config", "c.yaml"]) == begun
    folder.path.mkdir(parents=True)  # claimed, but never begun
    assert to_its_end(folder, ["--config", "c.yaml"]) == begun
    assert not folder.path.exists()
    folder.path.mkdir()
    folder.config.touch()
    assert to_its_end(folder, []) == ["resume", str(folder.path)]
    folder.record.touch()
    assert to_its_end(folder, []) is None


def test_the_process_may_import_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "ALLOWED", {*trust.BUILT_IN, "mine", "a"})
    assert in_a_process(["test", "r"]) == [
        *(sys.executable, "-m", "kd_lightning", "test", "r"),
        *("--allow", "a", "--allow", "mine"),
    ]
