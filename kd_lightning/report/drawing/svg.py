"""The paper that all pictures are drawn on: SVG inside a page, with the page's own font and text colour."""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

WIDTH = 320  # px: a telephone shows a picture in its own size, so that its text keeps its size
TEXT, TICK = 11, 10  # px
INK = "#010203"  # stands for the page's text colour, which is light on a dark page
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "kd_lightning",  # the same picture gives the same bytes
    "text.parse_math": False,  # a dollar in a name is a dollar
    "text.color": INK,
    "font.size": TEXT,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.titlesize": TEXT,
    "axes.labelsize": TEXT,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": TICK,
    "ytick.labelsize": TICK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "legend.fontsize": TICK,
    "legend.frameon": False,
}
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


@contextmanager
def any_script() -> Iterator[None]:
    """Let matplotlib's font lack a letter: the browser's font writes the text."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        yield


def inline(draw: Callable[[Figure], None], height: float) -> str:
    """An ``<svg>`` element of `WIDTH` by ``height`` px, of what ``draw`` puts on a figure with one point a pixel."""
    with any_script(), style.context(STYLE, after_reset=True):  # a matplotlibrc is no part of the picture
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        draw(figure)
        written = StringIO()
        figure.savefig(written, format="svg", metadata=NO_METADATA)
    return of_the_page(written.getvalue())


def of_the_page(svg: str) -> str:
    """An SVG file as an element that takes font and text colour from its surroundings."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", element, count=1, flags=re.DOTALL)
    element = re.sub(r'(width|height)="([\d.]+)pt"', r'\1="\2"', element, count=2)
    return re.sub(r"<[^>]+>", lambda tag: _tag_of_the_page(tag[0]), element)


def _tag_of_the_page(tag: str) -> str:
    return re.sub(r' ?font-family:[^;"]*;?', "", tag).replace(INK, "currentColor")


def panel(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place of a figure, in px from its upper left corner."""
    across, down = (72 * float(inches) for inches in figure.get_size_inches())
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def shortened(name: str, length: int = 16) -> str:
    """A name that fits into so many characters, ended by an ellipsis where it is longer."""
    return name if len(name) <= length else f"{name[: length - 1].rstrip()}…"


def room(names: Sequence[str], weight: str = "normal") -> float:
    """Width in px that the longest of the names takes beside an axis, at the size of a tick's label."""
    font = FontProperties(family="DejaVu Sans", size=TICK, weight=weight)  # matplotlib's own
    with any_script():
        return 6 + max(text_to_path.get_text_width_height_descent(name, font, ismath=False)[0] for name in names)
