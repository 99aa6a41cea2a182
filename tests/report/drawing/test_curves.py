from matplotlib.axes import Axes

from kd_lightning.report.drawing import Ink, curves, inks


def test_each_run_is_a_line_in_the_ink_of_its_method(axes: list[Axes]) -> None:
    svg = curves({"kd": [([0, 1], [1.0, 0.5]), ([0, 1], [1.1, 0.6])], "_at": [([0], [0.3])]}, inks(["kd", "_at"]))
    first, second, third = axes[0].get_lines()
    assert first.get_ydata().tolist() == [1.0, 0.5]
    assert first.get_color() == second.get_color() != third.get_color()
    assert third.get_marker() == "."  # a single point is seen too
    assert [svg.count(f'id="trace-{number}"') for number in range(4)] == [1, 1, 1, 0]


def test_dashes_are_drawn() -> None:
    assert "stroke-dasharray: 7.5,3" in curves({"a": [([0, 1], [1.0, 0.5])]}, {"a": Ink("#000000", (5, 2))})


def test_what_is_not_finite_does_not_set_the_scale(axes: list[Axes]) -> None:
    curves({"a": [([0, 1, 2, 3], [1.0, float("inf"), float("nan"), 0.5])]}, inks(["a"]))
    low, high = axes[0].get_ylim()
    assert 0.4 < low < 0.5 < 1 < high < 1.1
