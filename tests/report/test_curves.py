"""Learning curves: what is read from a metrics file."""

from pathlib import Path

import pytest

from kd_lightning.report.curves import curve, logged
from kd_lightning.run_folder import RunFolder

METRICS = """step,epoch,lr,train/loss,val/top1
10,0,0.1,2.5,
10,0,,,0.25
20,1,0.05,1.5,
20,1,,,0.5
"""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run's folder with two epochs of figures."""
    made = RunFolder(tmp_path / "run")
    made.path.mkdir()
    made.metrics.write_text(METRICS)
    return made


def test_a_curve_is_where_the_figure_was_logged(folder: RunFolder) -> None:
    assert curve(folder, "val/top1") == ([1.0, 2.0], [0.25, 0.5])
    assert curve(folder, "train/loss") == ([1.0, 2.0], [2.5, 1.5])
    assert curve(folder, "train/kd") == ([], [])


def test_values_of_one_epoch_lie_side_by_side(folder: RunFolder) -> None:
    rows = ["5,0,9,", "10,0,8,0.1", "15,1,7,", "20,1,6,", "25,1,5,", "30,1,4,0.2"]
    folder.metrics.write_text("\n".join(["step,epoch,train/loss,val/top1", *rows]))
    assert curve(folder, "train/loss") == ([0.5, 1.0, 1.25, 1.5, 1.75, 2.0], [9.0, 8.0, 7.0, 6.0, 5.0, 4.0])
    assert curve(folder, "val/top1") == ([1.0, 2.0], [0.1, 0.2])


def test_what_was_logged(folder: RunFolder, tmp_path: Path) -> None:
    assert logged(folder) == ["lr", "train/loss", "val/top1"]
    assert logged(RunFolder(tmp_path)) == []
