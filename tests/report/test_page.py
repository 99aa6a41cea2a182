import base64
import re
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kd_lightning.report.drawing import Ink, bars
from kd_lightning.report.page import (
    Callout,
    Gallery,
    Headline,
    Picture,
    Report,
    Section,
    Tile,
    page,
    paragraphs,
    png,
    svg_of_its_own,
)
from kd_lightning.report.table import TableData

NAME = "<b>a & b</b>"
SHOWN = "&lt;b&gt;a &amp; b&lt;/b&gt;"
GREY = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8)


def report(*sections: Section, **parts: Any) -> Report:
    return Report(**{"title": "title", "text": "", "headlines": (), "callouts": (), "sections": sections, **parts})


def decoded(uri: str) -> Image.Image:
    head, content = uri.split(",")
    assert head == "data:image/png;base64"
    return Image.open(BytesIO(base64.b64decode(content)))


def test_an_empty_report_is_a_page() -> None:
    html = page(report())
    assert html.startswith('<!doctype html>\n<html lang="en">')
    assert "<section" not in html
    assert "<footer" not in html


def test_the_page_forbids_itself_all_but_images_and_styles_of_its_own() -> None:
    html = page(report())
    assert "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\"" in html
    assert not re.search(r"<script|<link|@import|url\(http|src=\"http", html)


def test_whatever_is_written_is_shown_as_it_is() -> None:
    picture = Picture(bars(torch.ones(1), [NAME], NAME), NAME, NAME)
    section = Section(
        NAME,
        NAME,
        tables=[TableData([NAME, NAME], [[NAME, NAME]])],
        key={NAME: Ink("#0072B2", (5, 2))},
        pictures=[picture],
        galleries=[Gallery(NAME, [Tile(GREY, NAME, [NAME], picture)])],
    )
    html = page(
        report(
            section,
            title=NAME,
            text=NAME,
            headlines=[Headline(NAME, NAME, NAME)],
            callouts=[Callout(NAME, NAME)],
            footer=NAME,
        )
    )
    assert "<b>" not in html
    drawn = 4  # caption, description, label of the bar and of the axis
    of_the_section = 2 + 5 + 1 + drawn + 4 + drawn  # heading and text, table, key, picture, gallery with its tile
    assert (
        html.count(SHOWN) == 2 + 1 + 3 + 2 + 1 + 1 + of_the_section
    )  # title, text, headline, callout, footer, contents
    assert 'stroke-dasharray="5 2"' in html


def test_equal_reports_give_equal_pages() -> None:
    def made() -> str:
        return page(report(Section("s", pictures=[Picture(bars(torch.ones(2), ["a", "b"], "x"), "", "")])))

    assert made() == made()


def test_empty_parts_are_left_out() -> None:
    html = page(report(Section("s")))
    body = html[html.index("<body>") :]
    assert not re.search('<table|<figure|<details|class="key"|class="pictures"|class="headlines"|<aside', body)


def test_blank_lines_separate_paragraphs() -> None:
    assert paragraphs("one\nline\n\n \ntwo\n") == ["one\nline", "two"]
    assert paragraphs(" ") == []


def test_each_picture_has_ids_of_its_own_and_texts_stay() -> None:
    of_its_own = svg_of_its_own()
    svg = '<svg><path id="p" clip-path="url(#c)"/><use xlink:href="#p"/><text>id="p" url(#c)</text></svg>'
    changed = '<svg><path id="picture-{0}-p" clip-path="url(#picture-{0}-c)"/><use xlink:href="#picture-{0}-p"/>'
    assert [of_its_own(svg), of_its_own(svg)] == [
        changed.format(number) + '<text>id="p" url(#c)</text></svg>' for number in (1, 2)
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_a_png_of_the_same_pixels(channels: int) -> None:
    image = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    with decoded(png(image)) as shown:
        pixels = np.asarray(shown)
    assert np.array_equal(pixels.reshape(5, 7, channels), image.permute(1, 2, 0).numpy())


def test_a_large_image_is_made_smaller() -> None:
    with decoded(png(torch.zeros(3, 300, 600, dtype=torch.uint8))) as shown:
        assert shown.size == (224, 112)


@pytest.mark.parametrize(
    "image", [torch.zeros(3, 8, 8), torch.zeros(8, 8, dtype=torch.uint8), torch.zeros(2, 8, 8, dtype=torch.uint8)]
)
def test_what_is_no_image_is_refused(image: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=re.escape("image must be uint8 [1 or 3, H, W], got torch")):
        page(report(Section("s", galleries=[Gallery("g", [Tile(image, "t")])])))


def test_only_small_images_are_enlarged_pixel_by_pixel() -> None:
    tiles = [Tile(GREY, "small"), Tile(torch.zeros(3, 65, 65, dtype=torch.uint8), "large")]
    html = page(report(Section("s", galleries=[Gallery("g", tiles)])))
    assert re.findall(r'alt="(\w+)"( class="pixels")?>', html) == [("small", ' class="pixels"'), ("large", "")]


def test_a_row_that_is_too_short_is_refused() -> None:
    table = TableData(["", "top-1"], [["kd"]])
    with pytest.raises(ValueError, match=re.escape("a row must have 2 cells, one for each heading, got ['kd']")):
        page(report(Section("s", tables=[table])))
