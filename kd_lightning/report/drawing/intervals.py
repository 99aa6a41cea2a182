"""Forest plot: differences with their confidence intervals."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kd_lightning.report.drawing.inks import BLUE, VERMILLION
from kd_lightning.report.drawing.svg import INK, TICK, WIDTH, inline, panel, shortened

ROW, EDGE = 36, 12  # px


def colour_of(low: float, high: float) -> str:
    """Blue for an interval above 0, vermillion for one below, the text's colour for one that holds 0."""
    if low > 0:
        return BLUE
    return VERMILLION if high < 0 else INK


def intervals(names: Sequence[str], estimates: Sequence[tuple[float, float, float]], label: str) -> str:
    """A row for each difference, with its figures; above 0 in blue, below in vermillion.

    Args:
        names: What is compared, for instance "kd - alone".
        estimates: Estimate, lower and upper end of the interval, in the unit that the label states.
        label: Of the axis.
    """

    def draw(figure: Figure) -> None:
        axes = panel(figure, EDGE, 4, WIDTH - 2 * EDGE, ROW * len(names))
        across = axes.get_yaxis_transform()  # 0 and 1 are the sides
        for row, (name, (middle, low, high)) in enumerate(zip(names, estimates, strict=True)):
            colour = colour_of(low, high)
            axes.plot([0, 0], [row - 0.2, row + 0.2], color=INK, linewidth=0.6)
            axes.plot([low, high], [row, row], color=colour, linewidth=2, gid=f"trace-{row}")
            axes.plot(middle, row, "o", color=colour, markersize=6)
            figures = f"{middle:+.2f} [{low:+.2f}, {high:+.2f}]".replace("-", "\N{MINUS SIGN}")
            axes.text(0, row - 0.25, shortened(name, 26), transform=across, fontsize=TICK, va="bottom")
            axes.text(1, row - 0.25, figures, transform=across, fontsize=TICK, va="bottom", ha="right")
        axes.set_ylim(len(names) - 0.5, -0.75)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel(label)

    return inline(draw, ROW * len(names) + 44)
