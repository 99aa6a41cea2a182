import pytest

from kd_lightning.report.drawing import intervals
from kd_lightning.report.drawing.inks import BLUE, VERMILLION
from kd_lightning.report.drawing.intervals import colour_of
from kd_lightning.report.drawing.svg import INK


@pytest.mark.parametrize(
    ("low", "high", "colour"), [(0.1, 1, BLUE), (-1, -0.1, VERMILLION), (-1, 1, INK), (0, 1, INK), (-1, 0, INK)]
)
def test_the_colour_says_whether_the_interval_holds_0(low: float, high: float, colour: str) -> None:
    assert colour_of(low, high) == colour


def test_each_difference_has_a_row_with_its_figures() -> None:
    svg = intervals(["kd - alone", "at - <alone>"], [(1.234, 0.5, 2.0), (-0.5, -1.0, 0.25)], "points")
    assert ">+1.23 [+0.50, +2.00]<" in svg
    assert ">\N{MINUS SIGN}0.50 [\N{MINUS SIGN}1.00, +0.25]<" in svg
    assert ">at - &lt;alone&gt;<" in svg
    assert ">points<" in svg
    assert [svg.count(f'id="trace-{number}"') for number in range(3)] == [1, 1, 0]


def test_an_estimate_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter|longer"):
        intervals(["kd - alone"], [(1, 0, 2), (1, 0, 2)], "points")
