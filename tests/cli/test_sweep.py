"""The sweep command on the digits, and what it says where it cannot begin."""

import csv
import json
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from PIL import Image

from kd_lightning.cli import sweep_runs
from kd_lightning.cli.commands import run
from kd_lightning.cli.sweep import points, with_seeds
from kd_lightning.cli.sweep_file import cells, read_sweep

CONFIGS = Path(__file__).parents[2] / "configs"
KEY = "model.optimizer.init_args.lr"


def sweep_file(folder: Path) -> Path:
    path = folder / "rates.yaml"
    content = {
        "command": ["kd-lightning", "fit", f"--config={CONFIGS / 'digits/supervised/student.yaml'}", "${args}"],
        "method": "grid",
        "metric": {"name": "val/top1", "goal": "maximize"},
        "parameters": {KEY: {"values": [0.1, 1e-9]}},
    }
    path.write_text(yaml.safe_dump(content))
    return path


class Here(ThreadPoolExecutor):
    """Runs in this very thread, the only one that may listen to signals."""

    def submit(self, what: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(what(*arguments, **options))
        return done


def in_this_process(line: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.CompletedProcess(line, run(line[3:]))


@pytest.mark.slow
def test_cells_run_in_processes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["sweep", str(sweep_file(tmp_path)), "--parallel=2", "--name=s", "--trainer.max_epochs=2"]
    assert run([*line, "--trainer.accelerator=cpu"]) == 0
    assert "val top1" in Path("runs/s/lr=0.1.log").read_text()
    assert Path("runs/s/sweep.png").is_file()
    assert run([*line, "--trainer.accelerator=cpu", "--trainer.max_epoch=3", "--name=t"]) == 2
    assert "did you mean trainer.max_epochs?" in Path("runs/t/lr=0.1.log").read_text()


def test_a_sweep_of_the_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    processes = SimpleNamespace(run=in_this_process, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr(sweep_runs, "subprocess", processes)
    monkeypatch.setattr(sweep_runs, "ThreadPoolExecutor", Here)
    line = ["sweep", str(sweep_file(tmp_path)), "--seeds=0", "--trainer.max_epochs=2", "--trainer.accelerator=cpu"]
    assert run(line) == 0
    results = json.loads(Path("runs/rates/results.json").read_text())
    assert [cell[KEY] for cell in results["cells"]] == [0.1, 1e-9]
    for cell in results["cells"]:
        with (Path("runs/rates") / cell["run"] / "metrics.csv").open(newline="") as file:
            logged = [row["val/top1"] for row in csv.DictReader(file) if row["val/top1"]]
        assert cell["val/top1"] == float(logged[-1])
        assert yaml.safe_load((Path("runs/rates") / cell["run"] / "config.yaml").read_text())["seed_everything"] == 0
    assert results["best"]["parameters"] == {"lr": 0.1}
    assert results["best"]["mean"] == max(cell["val/top1"] for cell in results["cells"])
    with Image.open("runs/rates/sweep.png") as picture:
        assert picture.format == "PNG"
    before = {path: path.stat().st_mtime_ns for path in Path("runs/rates").glob("*/*.csv")}
    assert run(line) == 0
    assert {path: path.stat().st_mtime_ns for path in Path("runs/rates").glob("*/*.csv")} == before
    assert f"lr=0.1,seed_everything=0: val/top1 {results['best']['mean']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds=a"], "--seeds must be numbers with commas between, as 0,1,2, got a"),
        (["--parallel=0"], "--parallel must be >= 1, got 0"),
        ([f"--{KEY}=0.1"], "is swept over"),
        ([f"--{KEY}", "0.1"], "is swept over"),
        (["--config=nowhere.yaml"], "there is no configuration nowhere.yaml"),
        (["--name=a/b"], "must be the name of one folder, got 'a/b'"),
        (["--experiment=e"], "a sweep has no option --experiment: its runs are runs/NAME/CELL, so give --name"),
        (["--run", "r"], "a sweep has no option --run"),
        (["--seeds=0,1", "--seed_everything=3"], "--seed_everything is swept over"),
    ],
)
def test_a_mistake_is_one_message_before_a_run(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["sweep", str(sweep_file(tmp_path)), *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*/*/"))


def test_seeds_are_one_more_parameter(tmp_path: Path) -> None:
    sweep = read_sweep(sweep_file(tmp_path))
    assert with_seeds(sweep, None) == {KEY: [0.1, 1e-9]}
    assert with_seeds(sweep, "0,7") == {KEY: [0.1, 1e-9], "seed_everything": [0, 7]}


def test_the_seeds_of_a_setting_are_one_point_without_those_that_had_to_stop() -> None:
    grid = cells({"m.kd.weight": [0.1, 0.9], "seed_everything": [0, 1]})
    figures = dict(zip([cell.name for cell in grid], [0.25, 0.75, None, 0.5], strict=True))
    assert [(dict(point.parameters), point.values) for point in points(grid, figures)] == [
        ({"weight": 0.1}, [0.25, 0.75]),
        ({"weight": 0.9}, [0.5]),
    ]
