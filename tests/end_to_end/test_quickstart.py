"""`make run`, shortened: nine runs, the figures that are made of them, and what becomes of an earlier set."""

import io
import json
import logging
import re
import statistics
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_lightning import quickstart

NAMES = ("teacher", "alone", "distilled")
FOLDERS = {f"{name}-seed{seed}" for name in NAMES for seed in (0, 1, 2)}
SHORT = ("--trainer.max_epochs=2", "--trainer.accelerator=cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a shortened set of runs, and what an earlier set left behind."""
    folder = tmp_path_factory.mktemp("quickstart")
    earlier = folder / "runs/digits/teacher-seed0"
    earlier.mkdir(parents=True)
    (earlier / "mark").write_text("earlier")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.chdir(folder)
        quickstart.main(SHORT)
    (folder / "printed").write_text(printed.getvalue())
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_nine_ordinary_runs_are_left(place: Path) -> None:
    runs = place / "runs/digits"
    assert {path.name for path in runs.iterdir()} == FOLDERS | {"results.json", "report"}
    for name in FOLDERS:
        left = {path.name for path in (runs / name).iterdir()}
        assert left == {"config.yaml", "metrics.csv", "checkpoints", "run.json", "results.json"}
        assert read(runs / name / "results.json")["seed"] == int(name[-1])


def test_the_seeds_differ_and_each_student_learns_from_the_teacher_of_its_seed(place: Path) -> None:
    for seed in (0, 1, 2):
        config = yaml.safe_load((place / f"runs/digits/distilled-seed{seed}/config.yaml").read_text())
        assert config["seed_everything"] == seed
        teacher = config["model"]["init_args"]["teacher"]["init_args"]["network"]
        assert teacher["weights"] == f"runs/digits/teacher-seed{seed}"
        results = {name: read(place / f"runs/digits/{name}-seed{seed}/results.json") for name in NAMES}
        assert results["distilled"]["test/teacher_top1"] == pytest.approx(results["teacher"]["test/top1"])


def test_alone_and_distilled_are_the_same_student_trained_equally_long_on_the_same_data(place: Path) -> None:
    alone, distilled = (yaml.safe_load((quickstart.CONFIGS / quickstart.PLANS[name]).read_text()) for name in NAMES[1:])
    for settings in (alone, distilled):
        settings["model"]["init_args"]["optimizer"]["init_args"].pop("lr")  # each has its own best one
    for key in ("student", "optimizer", "scheduler"):
        assert alone["model"]["init_args"][key] == distilled["model"]["init_args"][key]
    assert (alone["trainer"], alone["data"]) == (distilled["trainer"], distilled["data"])


def test_the_figures_are_those_of_the_runs(place: Path) -> None:
    results = read(place / "runs/digits/results.json")
    assert set(results) == {"checkpoint", "methods", "differences", "flags", "commit", "seconds"}
    methods = results["methods"]
    assert list(methods) == list(NAMES)
    for name, method in methods.items():
        top1 = [read(place / f"runs/digits/{name}-seed{seed}/results.json")["test/top1"] for seed in (0, 1, 2)]
        figure = method["figures"]["top1"]
        assert figure["values"] == pytest.approx(top1)
        assert figure["mean"] == pytest.approx(statistics.fmean(top1))
        assert figure["std"] == pytest.approx(statistics.stdev(top1))
    assert methods["alone"]["student"]["macs"] == methods["distilled"]["student"]["macs"] == 13_008
    assert methods["distilled"]["teacher"]["params"] == methods["teacher"]["student"]["params"] == 77_754
    assert methods["distilled"]["compression"] == pytest.approx(77_754 / 1_384)
    teacher, alone, distilled = (methods[name]["figures"]["top1"]["mean"] for name in NAMES)
    assert teacher > alone
    assert methods["distilled"]["gap_recovered"] == pytest.approx((distilled - alone) / (teacher - alone))
    (difference,) = results["differences"]
    assert (difference["first"], difference["second"]) == ("distilled", "alone")
    assert difference["difference"] == pytest.approx(distilled - alone)
    assert difference["low"] < difference["difference"] < difference["high"]
    assert results["seconds"] > 0


def test_it_prints_a_line_for_each_run_then_the_tables_and_where_the_report_is(place: Path) -> None:
    lines = (place / "printed").read_text().splitlines()
    assert lines[0].startswith("the earlier runs are now in runs/digits.20")
    for number, line in enumerate(lines[1:10], start=1):
        assert re.fullmatch(rf"\[{number}/9\] \w+, seed \d: top-1 \d+\.\d\d %, \d+ s so far", line)
    assert lines[10] == "Tested at the last checkpoint of each run."
    assert "What it reaches" in lines[11]
    assert lines[-1] == "the page: runs/digits/report/report.html"


def test_the_page_has_the_pictures(place: Path) -> None:
    text = (place / "runs/digits/report/report.html").read_text()
    assert text.count("<svg") > 10
    for title in ("Figures", "Differences", "Learning curves", "Student against teacher", "Dark knowledge"):
        assert f"<h2>{title}</h2>" in text


def test_an_earlier_set_is_moved_aside(place: Path) -> None:
    moved = [path for path in (place / "runs").iterdir() if path.name != "digits"]
    assert len(moved) == 1
    assert moved[0].name.startswith("digits.20")
    assert (moved[0] / "teacher-seed0/mark").read_text() == "earlier"


def test_a_command_that_fails_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match=r"^kd-lightning fit .*teacher.yaml .* ended with exit code 2$"):
        quickstart.main(("--model.init_args.num_classes=11",))
    assert not (tmp_path / "runs/digits/results.json").exists()


def test_only_lightning_is_silenced_and_only_for_a_while() -> None:
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    with warnings.catch_warnings(record=True) as caught, quickstart.quiet():
        assert not logger.isEnabledFor(logging.WARNING)
        warnings.warn_explicit("tip", UserWarning, "file.py", 1, module="lightning.pytorch.trainer")
        warnings.warn_explicit("mine", UserWarning, "file.py", 1, module="other")
    assert [str(warning.message) for warning in caught] == ["mine"]
    assert logger.level == before
