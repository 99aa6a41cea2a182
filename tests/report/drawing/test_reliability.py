import pytest
import torch
from matplotlib.axes import Axes

from kd_lightning.report.drawing import reliability


def test_bars_are_the_accuracies_of_the_bins_that_have_images(axes: list[Axes]) -> None:
    nan = torch.nan
    svg = reliability(
        torch.tensor([nan, 0.3, 0.6, 0.9]), torch.tensor([nan, 0.5, 0.5, 0.75]), torch.tensor([0, 0.25, 0.25, 0.5])
    )
    above, below = axes
    assert [(bar.get_x(), bar.get_height()) for bar in above.patches] == [(0.25, 0.5), (0.5, 0.5), (0.75, 0.75)]
    marks = above.collections[0].get_segments()  # type: ignore[attr-defined]
    assert [mark[0, 1] for mark in marks] == pytest.approx([0.3, 0.6, 0.9])
    assert [bar.get_height() for bar in below.patches] == [0, 0.25, 0.25, 0.5]
    assert svg.count('id="trace-') == 4
