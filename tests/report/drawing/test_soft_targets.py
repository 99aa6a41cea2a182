import re

import pytest
import torch
from matplotlib.axes import Axes

from kd_lightning.report.drawing import soft_targets

CLASSES = ["a", "b", "c", "d"]


def test_bars_are_the_probabilities_at_each_temperature(axes: list[Axes]) -> None:
    # softmax([ln 4, 0, ln 9]) = [4, 1, 9] / 14; at T = 2 the square roots, [2, 1, 3] / 6
    teacher = torch.tensor([4.0, 1.0, 9.0]).log()
    soft_targets({"teacher": teacher, "student": torch.zeros(3)}, CLASSES[:3], 0, temperatures=(1, 2))
    plain, softened = axes
    assert [bar.get_width() for bar in plain.patches[:3]] == pytest.approx([9 / 14, 4 / 14, 1 / 14])
    assert [bar.get_width() for bar in softened.patches[:3]] == pytest.approx([3 / 6, 2 / 6, 1 / 6])
    assert [bar.get_width() for bar in softened.patches[3:]] == pytest.approx([1 / 3] * 3)
    assert [panel.get_title() for panel in axes] == ["T = 1", "T = 2"]


def test_the_legend_has_every_name() -> None:
    svg = soft_targets({"teacher": torch.zeros(3), "_kd <b>": torch.ones(3)}, CLASSES[:3], 0)
    assert ">teacher<" in svg
    assert ">_kd &lt;b&gt;<" in svg


def test_rows_are_the_likeliest_classes_and_the_label_bold(axes: list[Axes]) -> None:
    svg = soft_targets({"teacher": torch.tensor([0.0, 3.0, 2.0, 1.0])}, CLASSES, target=0, most=2)
    labels = axes[0].get_yticklabels()
    assert [(label.get_text(), label.get_fontweight()) for label in labels] == [("b", "normal"), ("a", "bold")]
    assert len(re.findall(r'id="trace-\d-0-\d"', svg)) == 4
    assert "student" not in svg
