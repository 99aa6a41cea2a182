import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from kd_lightning.report.sweep_map import (
    Point,
    draw_line,
    draw_map,
    draw_sweep,
    drawable,
    means,
    sweep_table,
    varied,
)


def grid(**values: list[object]) -> list[Point]:
    names = list(values)
    first, second = values.values()
    return [Point({names[0]: a, names[1]: b}, [i + j / 10]) for i, a in enumerate(first) for j, b in enumerate(second)]


def test_a_point_is_the_mean_and_sample_deviation_of_its_seeds() -> None:
    point = Point({"T": 1}, [0.5, 0.6, 0.7])
    assert (point.mean, point.std) == (pytest.approx(0.6), pytest.approx(0.1))
    assert Point({"T": 1}, [0.5]).std == 0
    assert math.isnan(Point({"T": 1}, []).mean)


def test_where_not_all_values_are_numbers_all_are_words() -> None:
    points = drawable(grid(T=[1, 4.5], dropout=[0, False]))
    assert [tuple(point.parameters.values()) for point in points] == [
        (1, "0"),
        (1, "False"),
        (4.5, "0"),
        (4.5, "False"),
    ]
    assert drawable([Point({}, [0.5])]) == [Point({"": "all seeds"}, [0.5])]


def test_what_has_one_value_does_not_vary() -> None:
    assert varied(grid(T=[4, 1], alpha=[0.9])) == {"T": [4, 1]}


def test_means_stand_where_their_parameters_say() -> None:
    points = grid(T=[1, 4], alpha=[0.1, 0.5, 0.9])
    points[1] = Point(points[1].parameters, [])
    found = means(points[:-1], ("alpha", [0.1, 0.5, 0.9]), ("T", [1, 4]))
    expected = torch.tensor([[0.0, 1.0], [math.nan, 1.1], [0.2, math.nan]])
    assert torch.allclose(found, expected, equal_nan=True)


def test_the_table_has_a_row_for_each_setting() -> None:
    table = sweep_table([Point({"T": 1.0}, [0.5, 0.7]), Point({"T": 4.0}, [0.25]), Point({"T": 8.0}, [])], "val/top1")
    assert table.headings == ["T", "val/top1", "seeds"]
    assert table.rows == [["1.0", "0.6000 ± 0.1414", "2"], ["4.0", "0.2500", "1"], ["8.0", "-", "0"]]


def test_a_map_says_each_value_and_leaves_what_is_missing_empty() -> None:
    axes = Figure().subplots()
    draw_map(axes, torch.tensor([[0.5, math.nan], [0.25, 1.0]]), ["a", "b"], ["c", "d"], (0.25, 1.0))
    texts = {text.get_position(): (text.get_text(), text.get_color()) for text in axes.texts}
    assert texts == {(0, 0): ("0.5000", "white"), (0, 1): ("0.2500", "white"), (1, 1): ("1.0000", "black")}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_a_line_goes_through_the_means() -> None:
    axes = Figure().subplots()
    draw_line(axes, [Point({"T": 1}, [0.5, 0.7]), Point({"T": 4}, [0.8])], "T")
    line = axes.get_lines()[0]
    assert np.allclose(line.get_xydata(), [[1, 0.6], [4, 0.8]])


@pytest.mark.parametrize(
    ("points", "panels"),
    [
        ([Point({"T": 1}, [0.5])], 1),
        (grid(T=[1, 4], alpha=[0.9]), 1),
        (grid(optimizer=["sgd", "adam"], T=[1, 4]), 1),
        ([Point({"a": a, "b": b, "c": c}, [0.5]) for a in (1, 2) for b in (1, 2) for c in (1, 2, 3)], 3),
        ([Point({"a": a, "b": b}, []) for a in (1, 2) for b in (1, 2)], 1),
        ([Point({}, [0.5, 0.6])], 1),
        (grid(widths=[[2, 4], [4, 8]], T=[1, 4]), 1),
        ([Point({"optimizer": {"lr": lr}}, [lr]) for lr in (0.1, 0.2)], 1),
        ([Point({"precision": precision}, [0.5]) for precision in ("32-true", 16)], 1),
        ([Point({"a": a, "b": b, "c": c}, [0.5]) for a in (1, True) for b in (1, None) for c in ([1], [2], [3])], 3),
    ],
    ids=[
        *("one point", "one parameter", "words", "three parameters", "nobody got to the end"),
        *("seeds alone", "lists", "dicts", "words and numbers", "three with lists"),
    ],
)
def test_a_picture_is_drawn(points: list[Point], panels: int, tmp_path: Path) -> None:
    draw_sweep(points, "val/top1", tmp_path / "sweep.png")
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.size == (600 * panels, 480)
