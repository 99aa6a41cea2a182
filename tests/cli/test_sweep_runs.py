import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kd_lightning.cli import sweep_runs
from kd_lightning.cli.sweep_file import Cell, cells
from kd_lightning.cli.sweep_runs import check_same, figure_of, outcomes
from kd_lightning.run_folder import RunFolder

GRID = cells({"m.kd.weight": [0.1, 0.5, 0.9]})


class Runs:
    """Stands in for the processes: each leaves what a run does, or the exit code that is asked of it."""

    def __init__(self) -> None:
        self.lines: list[list[str]] = []
        self.codes: dict[str, int] = {}

    def __call__(self, line: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        assert line[:3] == [sys.executable, "-m", "kd_lightning"]
        self.lines.append(line[3:])
        at = Path("runs/e") / line[line.index("--run") + 1] if "--run" in line else Path(line[4])
        folder, code = RunFolder(at), self.codes.get(at.name, 0)
        at.mkdir(parents=True, exist_ok=True)
        folder.config.touch()
        if line[3] == "test":
            folder.results.write_text('{"test/top1": 0.75}')
        elif code == 0:
            folder.metrics.write_text("step,epoch,val/top1\n1,0,0.25\n2,1,0.5\n")
            folder.record.touch()
        return subprocess.CompletedProcess(line, code)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.chdir(tmp_path)
    Path("runs/e").mkdir(parents=True)
    made = Runs()
    monkeypatch.setattr(sweep_runs.subprocess, "run", made)
    return made


def carry_out(metric: str = "val/top1", parallel: int = 1, grid: list[Cell] = GRID) -> dict[str, float | None]:
    return outcomes(grid, Path("runs/e"), ["--config=c.yaml"], metric, parallel, Console(quiet=True))


@pytest.mark.parametrize("parallel", [1, 3])
def test_each_cell_is_a_run_and_is_not_run_again(parallel: int, runs: Runs) -> None:
    expected = {f"weight={weight}": 0.5 for weight in (0.1, 0.5, 0.9)}
    assert carry_out(parallel=parallel) == expected
    assert sorted(runs.lines) == [
        ["fit", "--config=c.yaml", f"--m.kd.weight={w}", "--experiment", "e", "--run", f"weight={w}"]
        for w in (0.1, 0.5, 0.9)
    ]
    runs.lines.clear()
    assert carry_out() == expected
    assert runs.lines == []
    assert set(carry_out(grid=cells({"m.kd.weight": [0.9, 1.9]}))) == {"weight=0.9", "weight=1.9"}
    assert [line[-1] for line in runs.lines] == ["weight=1.9"]


def test_a_stopped_cell_goes_on_and_one_that_never_began_begins(runs: Runs) -> None:
    stopped, claimed = Path("runs/e/weight=0.1"), Path("runs/e/weight=0.5")
    for folder in (stopped, claimed):
        folder.mkdir()
    RunFolder(stopped).config.touch()
    carry_out()
    assert runs.lines[0] == ["resume", str(stopped)]
    assert [line[0] for line in runs.lines] == ["resume", "fit", "fit"]


def test_a_figure_of_the_test_is_tested_for_once(runs: Runs) -> None:
    assert set(carry_out("test/top1").values()) == {0.75}
    assert [line[0] for line in runs.lines] == ["fit", "test"] * 3
    carry_out("test/top1")
    assert len(runs.lines) == 6


def test_a_run_that_had_to_stop_leaves_a_gap(runs: Runs) -> None:
    runs.codes["weight=0.5"] = 1
    assert carry_out() == {"weight=0.1": 0.5, "weight=0.5": None, "weight=0.9": 0.5}


@pytest.mark.parametrize("code", [2, 75])
def test_after_a_mistake_or_a_signal_no_other_cell_is_begun(code: int, runs: Runs) -> None:
    runs.codes["weight=0.1"] = code
    many = cells({"m.kd.weight": [0.1, *range(20)]})
    with pytest.raises(ValueError, match=rf"weight=0.1 ended with exit code {code}: see .*weight=0.1\.log"):
        carry_out(grid=many)
    assert len(runs.lines) < len(many)


def test_a_figure_that_no_run_logs_is_named(runs: Runs) -> None:
    with pytest.raises(ValueError, match="has not logged val/top5, but val/top1"):
        carry_out("val/top5")
    folder = RunFolder(Path("runs/e/weight=0.1"))
    folder.results.write_text("{}")
    with pytest.raises(ValueError, match="has no test/ece"):
        figure_of(folder, "test/ece")


def test_a_sweep_goes_on_only_with_the_same_command_and_configurations(tmp_path: Path) -> None:
    config, note = tmp_path / "c.yaml", tmp_path / "sweep/sweep.json"
    config.write_text("seed_everything: 0")
    line = [f"--config={config}", "--trainer.max_epochs=3"]
    check_same(note, line, GRID)
    check_same(note, line, GRID)
    assert json.loads(note.read_text())["line"] == line
    with pytest.raises(ValueError, match=r"holds runs of other line: .*max_epochs=3.* give another --name"):
        check_same(note, [line[0], "--trainer.max_epochs=4"], GRID)
    config.write_text("seed_everything: 1")
    with pytest.raises(ValueError, match="holds runs of other configs"):
        check_same(note, line, GRID)


def test_a_cell_has_the_name_of_no_other_one(tmp_path: Path) -> None:
    note = tmp_path / "s/sweep.json"
    check_same(note, [], GRID)
    check_same(note, [], cells({"m.kd.weight": [0.9, 1.9]}))
    check_same(note, [], cells({"m.kd.weight": [0.1], "seed_everything": [0, 1]}))
    check_same(note, [], cells({"m.ce.weight": [0.1], "m.kd.weight": [0.1]}))  # by longer names
    for parameters in ({"m.ce.weight": [0.2, 0.1]}, {"m.ce.weight": [1.9]}):
        with pytest.raises(ValueError, match=r"holds runs of another weight=.*kd\.weight.*now.*ce\.weight.*--name"):
            check_same(note, [], cells(parameters))
    check_same(note, [], cells({"data.root": ["a/b"]}))
    with pytest.raises(ValueError, match="another root=a-b"):
        check_same(note, [], cells({"data.root": ["a b"]}))
