import pytest

from kd_lightning.report.drawing.inks import BLUE, VERMILLION, Ink, inks


def test_the_first_lines_are_solid_and_each_has_its_colour() -> None:
    assert inks(["a", "b", "a"]) == {"a": Ink(BLUE, ()), "b": Ink(VERMILLION, ())}
    six = inks("abcdef")
    assert len({ink.colour for ink in six.values()}) == 6
    assert {ink.dashes for ink in six.values()} == {()}


@pytest.mark.parametrize("count", [7, 24])
def test_more_lines_than_colours_stay_different(count: int) -> None:
    assert len(set(inks(map(str, range(count))).values())) == count


def test_more_lines_than_inks_begin_again() -> None:
    found = inks(map(str, range(25)))
    assert found["24"] == found["0"]
