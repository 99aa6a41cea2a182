"""Learning curves: what is read from a metrics file, and what is drawn."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from kd_lightning.report.curves import curve, draw_curves
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
    assert curve(folder, "val/top1") == ([0, 1], [0.25, 0.5])
    assert curve(folder, "train/loss") == ([0, 1], [2.5, 1.5])
    assert curve(folder, "train/kd") == ([], [])


def test_the_picture_has_a_panel_for_each_figure(folder: RunFolder, tmp_path: Path) -> None:
    for number, figures in enumerate((["val/top1"], ["val/top1", "train/loss", "lr"])):
        draw_curves({"one": [folder]}, tmp_path / f"{number}.png", figures)
    with Image.open(tmp_path / "0.png") as one, Image.open(tmp_path / "1.png") as three:
        assert (one.format, three.format) == ("PNG", "PNG")
        assert three.width == 3 * one.width
        assert three.height == one.height
        assert len(three.convert("RGB").getcolors(three.width * three.height) or []) > 10  # not a blank sheet


def test_groups_have_a_colour_and_one_label_each(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    draw_curves({"teacher": [folder, folder], "alone": [folder]}, tmp_path / "any.png", ["val/top1"])
    lines = drawn[0].axes[0].get_lines()
    assert [line.get_color() for line in lines] == ["C0", "C0", "C1"]
    assert [list(line.get_ydata()) for line in lines] == [[0.25, 0.5]] * 3
    legend = drawn[0].axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["teacher", "alone"]
    assert (drawn[0].axes[0].get_xlabel(), drawn[0].axes[0].get_ylabel()) == ("epoch", "val/top1")
