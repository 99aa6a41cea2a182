import re

import pytest
import torch

from kd_lightning.report.drawing import bars
from kd_lightning.report.drawing.bars import ends
from kd_lightning.report.drawing.inks import BLUE, VERMILLION


def test_of_a_long_order_the_two_ends_are_shown_around_a_free_row() -> None:
    assert ends([5, 6, 7], 4) == ([5, 6, 7], [0, 1, 2])
    assert ends([5, 6, 7, 8], 4) == ([5, 6, 7, 8], [0, 1, 2, 3])
    assert ends(list(range(9)), 4) == ([0, 1, 7, 8], [0, 1, 3, 4])


def test_gains_are_above_losses_and_have_another_colour() -> None:
    svg = bars(torch.tensor([-1.0, 2.0, 0.0]), ["cat", "a & b", "dog"], "points")
    assert re.findall(r">(cat|a &amp; b|dog|points)<", svg) == ["points", "a &amp; b", "dog", "cat"]
    colours = re.findall(r'id="trace-\d">.*?fill: (#\w+)', svg, re.DOTALL)
    assert colours == [BLUE.lower(), BLUE.lower(), VERMILLION.lower()]


def test_of_many_classes_the_number_of_those_between_is_said() -> None:
    svg = bars(torch.arange(100.0), [f"class {number}" for number in range(100)], "points", most=4)
    assert re.findall(r">(class \d+|… \d+ more …)<", svg) == [
        "class 99",
        "class 98",
        "class 1",
        "class 0",
        "… 96 more …",
    ]
    assert svg.count('id="trace-') == 4


def test_a_value_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("values must be [2] as there are names, got [3]")):
        bars(torch.ones(3), ["a", "b"], "points")
