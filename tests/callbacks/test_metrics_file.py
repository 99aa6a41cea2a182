"""The metrics file: a row for each step, which a resumed run continues."""

import csv
from pathlib import Path

import pytest

from kd_lightning.callbacks import MetricsFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.csv"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_step_is_a_row_at_once(path: Path) -> None:
    log = MetricsFile(path)
    log.log_metrics({"train/loss": 0.1, "epoch": 0}, step=1)
    assert path.read_bytes() == b"step,epoch,train/loss\r\n1,0,0.1\r\n"
    log.log_metrics({"train/loss": 1 / 3, "epoch": 0.0}, step=2)
    assert rows(path)[1] == {"step": "2", "epoch": "0", "train/loss": repr(1 / 3)}


def test_gaps_of_the_same_step_are_filled(path: Path) -> None:
    log = MetricsFile(path)
    log.log_metrics({"train/loss": 0.5, "epoch": 0}, step=10)
    log.log_metrics({"val/top1": 0.25, "epoch": 0}, step=10)
    assert rows(path) == [{"step": "10", "epoch": "0", "train/loss": "0.5", "val/top1": "0.25"}]


def test_another_value_for_the_same_step_is_another_row(path: Path) -> None:
    log = MetricsFile(path)
    log.log_metrics({"train/loss": 0.5}, step=10)
    log.log_metrics({"train/loss": 0.75}, step=10)
    assert [row["train/loss"] for row in rows(path)] == ["0.5", "0.75"]


def test_columns_grow_and_stay_in_order(path: Path) -> None:
    log = MetricsFile(path)
    log.log_metrics({"val/top1": 1, "epoch": 0}, step=1)
    log.log_metrics({"lr": 2, "epoch": 1}, step=2)
    log.log_metrics({"val/top1": 3, "epoch": 2}, step=3)
    assert path.read_text().splitlines() == ["step,epoch,lr,val/top1", "1,0,,1.0", "2,1,2.0,", "3,2,,3.0"]
    assert not list(path.parent.glob(".*"))


def test_what_is_not_finite_is_written_as_it_is(path: Path) -> None:
    MetricsFile(path).log_metrics({"train/loss": float("nan"), "lr": float("inf")}, step=1)
    assert rows(path)[0]["train/loss"] == "nan"
    assert rows(path)[0]["lr"] == "inf"


def test_a_resumed_run_equals_an_uninterrupted_one(path: Path, tmp_path: Path) -> None:
    whole = MetricsFile(tmp_path / "whole.csv")
    first = MetricsFile(path)
    for step in range(1, 6):
        whole.log_metrics({"train/loss": step / 7}, step=step)
        first.log_metrics({"train/loss": step / 7}, step=step)
    for step in range(6, 9):
        whole.log_metrics({"train/loss": step / 7}, step=step)
    second = MetricsFile(path)
    second.rewind(3)
    assert [row["step"] for row in rows(path)] == ["1", "2", "3"]
    for step in range(4, 9):
        second.log_metrics({"train/loss": step / 7}, step=step)
    assert path.read_bytes() == whole.path.read_bytes()


def test_rewinding_past_the_end_changes_nothing(path: Path) -> None:
    log = MetricsFile(path)
    log.log_metrics({"train/loss": 1}, step=4)
    before = path.stat().st_mtime_ns
    log.rewind(4)
    assert path.stat().st_mtime_ns == before
    assert len(rows(path)) == 1


def test_rewinding_to_the_start_leaves_no_row(path: Path) -> None:
    log = MetricsFile(path)
    log.log_metrics({"train/loss": 1}, step=4)
    log.rewind(0)
    assert rows(path) == []


def test_it_adds_no_folder_of_its_own(path: Path) -> None:
    log = MetricsFile(path)
    assert (log.name, log.version, log.save_dir) == ("", "", str(path.parent))
    log.log_hyperparams({"lr": 0.1})
    assert not path.exists()


def test_the_last_value_of_a_figure_may_be_of_an_earlier_part(path: Path) -> None:
    log = MetricsFile(path)
    log.log_metrics({"val/top1": 0.5}, step=1)
    log.log_metrics({"val/top1": 0.25}, step=2)
    log.log_metrics({"lr": 1}, step=3)
    for each in (log, MetricsFile(path)):
        assert (each.last("val/top1"), each.last("lr"), each.last("val/loss")) == (0.25, 1.0, None)
