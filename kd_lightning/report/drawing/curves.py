"""Learning curves: one figure over the epochs, a line for each run."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kd_lightning.report.drawing.inks import Ink
from kd_lightning.report.drawing.svg import WIDTH, inline, panel

HEIGHT = 200  # px


def curves(lines: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]], inks: Mapping[str, Ink]) -> str:
    """A panel with the epochs across; values that are not finite are left out.

    Args:
        lines: Method -> for each of its runs places in epochs and values, as `report.curves.curve` reads them.
        inks: Method -> ink of its lines; the page says which is which.
    """
    runs = [(inks[name], *run) for name, of_method in lines.items() for run in of_method]

    def draw(figure: Figure) -> None:
        axes = panel(figure, 52, 8, WIDTH - 64, HEIGHT - 48)
        for number, (ink, epochs, values) in enumerate(runs):
            finite = np.where(np.isfinite(values), values, np.nan)
            (line,) = axes.plot(epochs, finite, color=ink.colour, alpha=0.85, gid=f"trace-{number}")
            if ink.dashes:
                line.set_dashes(ink.dashes)
            if len(epochs) == 1:  # a line of one point is not seen
                line.set_marker(".")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid()

    return inline(draw, HEIGHT)
