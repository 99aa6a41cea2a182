"""The report as one HTML file that needs no network, no script and no other file."""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from itertools import count
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from torch import Tensor, uint8

from kd_lightning.report.drawing.inks import Ink
from kd_lightning.report.table import TableData

SMALL = 64  # px: up to here an image is enlarged pixel by pixel
LARGEST = 224  # px: a larger image is made smaller, so that the page stays light


class Headline(NamedTuple):
    """One figure to begin with, for instance ``("gap recovered", "84%", "kd, 3 seeds")``."""

    label: str
    value: str
    note: str = ""


class Callout(NamedTuple):
    """Something that the reader must know before believing a figure."""

    title: str
    text: str


class Picture(NamedTuple):
    """An ``<svg>`` element of `report.drawing`, what is written below it, and what it shows in words."""

    svg: str
    caption: str
    alt: str


class Tile(NamedTuple):
    """An image, uint8 ``[C, H, W]`` with 1 or 3 channels, with what is said of it."""

    image: Tensor
    title: str
    lines: Sequence[str] = ()
    picture: Picture | None = None


class Gallery(NamedTuple):
    """Images side by side, under a line that unfolds them."""

    title: str
    tiles: Sequence[Tile]
    unfolded: bool = True


class Section(NamedTuple):
    """A part of the page; a blank line in its text begins a new paragraph, and what is empty is left out."""

    title: str
    text: str = ""
    tables: Sequence[TableData] = ()
    key: Mapping[str, Ink] = {}
    pictures: Sequence[Picture] = ()
    galleries: Sequence[Gallery] = ()


class Report(NamedTuple):
    """All that is on the page."""

    title: str
    text: str
    headlines: Sequence[Headline]
    callouts: Sequence[Callout]
    sections: Sequence[Section]
    footer: str = ""


def page(report: Report) -> str:
    """The report as HTML; every name and text is shown as it is, and equal reports give equal pages.

    Raises:
        ValueError: for an image of another type or shape than a `Tile` takes, and for a row of a table that has not
            a cell for each heading.
    """
    for table in (table for section in report.sections for table in section.tables):
        check(table)
    environment = Environment(
        loader=PackageLoader("kd_lightning.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"svg": svg_of_its_own(), "png": png, "paragraphs": paragraphs}
    return environment.get_template("report.html").render(report._asdict(), small=SMALL)


def check(table: TableData) -> None:
    """Refuse a table with a row that is too short or too long."""
    for row in table.rows:
        if len(row) != len(table.headings):
            raise ValueError(f"a row must have {len(table.headings)} cells, one for each heading, got {list(row)}")


def paragraphs(text: str) -> list[str]:
    """What blank lines separate."""
    return [part for part in re.split(r"\n\s*\n", text.strip()) if part]


def svg_of_its_own() -> Callable[[str], Markup]:
    """A filter that gives the ids of each picture a prefix of its own: ids are unique in a page."""
    numbers = count(1)

    def renamed(svg: str) -> Markup:
        own = rf"\1picture-{next(numbers)}-"
        return Markup(re.sub(r"<[^>]+>", lambda tag: re.sub(r'((?:\bid="|href="#|url\(#))', own, tag[0]), svg))

    return renamed


def png(image: Tensor) -> str:
    """An image as a data URI.

    Raises:
        ValueError: if it is not uint8 ``[C, H, W]`` with 1 or 3 channels.
    """
    if image.dtype != uint8 or image.dim() != 3 or image.shape[0] not in {1, 3}:
        raise ValueError(f"image must be uint8 [1 or 3, H, W], got {image.dtype} {list(image.shape)}")
    pixels = image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)
    picture = Image.fromarray(pixels.contiguous().numpy())
    picture.thumbnail((LARGEST, LARGEST))
    written = BytesIO()
    picture.save(written, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
