"""Colours that stay apart for colour-blind readers, on a light and on a dark page."""

from collections.abc import Iterable
from itertools import cycle, product
from typing import NamedTuple

# Okabe, Ito, "Color Universal Design", 2008, without black and yellow, which one of the two pages swallows.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))


class Ink(NamedTuple):
    """How a line is drawn: its colour, and lengths of dashes and gaps in px, none for a solid line."""

    colour: str
    dashes: tuple[float, ...]


def inks(names: Iterable[str]) -> dict[str, Ink]:
    """An ink for each name: a colour for each of the first six, then dashes in these colours, and from 25 on again."""
    all_inks = cycle(Ink(colour, dashes) for dashes, colour in product(DASHES, COLOURS))
    return dict(zip(dict.fromkeys(names), all_inks, strict=False))
