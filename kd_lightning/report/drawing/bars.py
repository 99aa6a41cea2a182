"""A value for each class as bars: what is gained to the right, what is lost to the left."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from kd_lightning.report.drawing.inks import BLUE, VERMILLION
from kd_lightning.report.drawing.svg import INK, WIDTH, inline, panel, room, shortened

ROW, EDGE = 16, 12  # px


def ends(order: Sequence[int], most: int) -> tuple[list[int], list[int]]:
    """What is shown of an order, and at which rows: all of it, or its two ends around a row that is free for a word."""
    if len(order) <= most:
        return list(order), list(range(len(order)))
    half = most // 2
    return [*order[:half], *order[-half:]], [*range(half), *range(half + 1, 2 * half + 1)]


def bars(values: Tensor, names: Sequence[str], label: str, most: int = 24) -> str:
    """A bar for each value ``[C]``, the largest on top; of more than ``most``, an even number, only the two ends.

    Raises:
        ValueError: if there is not a name for each value.
    """
    if values.shape != (len(names),):
        raise ValueError(f"values must be [{len(names)}] as there are names, got {list(values.shape)}")
    shown, rows = ends(values.argsort(descending=True, stable=True).tolist(), most)
    labels = [shortened(names[number]) for number in shown]
    between = {most // 2: f"… {len(names) - most} more …"} if len(names) > most else {}
    left, height = room([*labels, *between.values()]), ROW * (rows[-1] + 1)

    def draw(figure: Figure) -> None:
        axes = panel(figure, left, 4, WIDTH - left - EDGE, height)
        lengths = values[shown].tolist()
        colours = [VERMILLION if length < 0 else BLUE for length in lengths]
        for number, bar in enumerate(axes.barh(rows, lengths, 0.7, color=colours)):
            bar.set_gid(f"trace-{number}")
        axes.axvline(0, color=INK, linewidth=0.6)
        axes.set_yticks([*rows, *between], [*labels, *between.values()])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(rows[-1] + 0.5, -0.5)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="x")
        axes.set_xlabel(label)

    return inline(draw, height + 48)
