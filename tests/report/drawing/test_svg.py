import re
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.figure import Figure

from kd_lightning.report.drawing.svg import INK, WIDTH, inline, panel, room, shortened


def letters(text: str) -> str:
    def draw(figure: Figure) -> None:
        axes = panel(figure, 10, 20, 100, 50)
        axes.set_title(text)
        axes.plot([0, 1], [0, 1], gid="trace-0")

    return inline(draw, 90)


def test_a_picture_is_an_element_of_its_size_without_metadata_and_style() -> None:
    svg = letters("title")
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert (float(root.get("width", "")), float(root.get("height", ""))) == (WIDTH, 90)
    assert root.get("viewBox") == f"0 0 {WIDTH} 90"
    assert not re.search("<metadata|<style|<!DOCTYPE|font-family|date", svg)


@pytest.mark.parametrize("name", ["<b>", "a & b", "$x_1$", "_hidden", '"quoted"', "\N{CJK UNIFIED IDEOGRAPH-732B}"])
def test_names_are_text_as_they_are(name: str, recwarn: pytest.WarningsRecorder) -> None:
    texts = [element.text for element in ElementTree.fromstring(letters(name)).iter() if element.tag.endswith("}text")]
    assert name in texts
    assert room([name]) > 6
    assert [str(warning.message) for warning in recwarn if "Glyph" in str(warning.message)] == []


def test_what_is_drawn_in_ink_has_the_colour_of_the_surrounding_text() -> None:
    svg = letters(f"the colour {INK}")
    assert f">the colour {INK}<" in svg  # in a text it is a text
    assert svg.count(INK) == 1
    assert "stroke: currentColor" in svg
    assert "fill: currentColor" in svg


def test_the_same_picture_has_the_same_bytes_whatever_the_settings_are() -> None:
    first = letters("title")
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 30, "axes.edgecolor": "red", "svg.fonttype": "path"}):
        assert letters("title") == first
    assert dict(matplotlib.rcParams) == before


def test_a_panel_is_where_it_was_put() -> None:
    figure = Figure(figsize=(2, 1), dpi=72)
    left, bottom, width, height = panel(figure, 36, 18, 72, 27).get_position().bounds
    assert (left, bottom, width, height) == pytest.approx((0.25, 0.375, 0.5, 0.375))


def test_a_long_name_is_shortened_and_a_short_one_is_not() -> None:
    assert shortened("aquarium", 8) == "aquarium"
    assert shortened("aquarium fish", 8) == "aquariu…"
    assert shortened("aquarium fish", 10) == "aquarium…"


def test_a_longer_name_needs_more_room_and_a_bold_one_too() -> None:
    assert room(["a", "aaaa"]) == room(["aaaa"]) > room(["a"])
    assert room(["aaaa"], "bold") > room(["aaaa"])
