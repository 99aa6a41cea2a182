"""What one image looks like to the networks: their probabilities, as they are and softened."""

import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from kd_lightning.report.drawing.inks import COLOURS
from kd_lightning.report.drawing.svg import WIDTH, inline, panel, room, shortened

ROW, TOP, BELOW, GAP = 26, 24, 26, 18  # px
LINE, COLUMN = 15, 130  # px that a line of the legend is high, and a name of its two columns at most wide


def soft_targets(
    logits: Mapping[str, Tensor],
    classes: Sequence[str],
    target: int,
    temperatures: Sequence[float] = (1.0, 4.0),
    most: int = 5,
) -> str:
    """A panel for each temperature, a row for each class that the first network finds likeliest; the label is bold.

    Args:
        logits: Network -> its logits ``[C]``, of up to six networks.
        classes: Names of the classes.
        target: The label; it is shown also where it is not among the likeliest.
        temperatures: What the logits are divided by.
        most: So many classes are shown.
    """
    order = next(iter(logits.values())).argsort(descending=True)[:most].tolist()
    shown = order if target in order else [*order[:-1], target]
    names = [shortened(classes[number], 14) for number in shown]
    left = room(names, "bold")
    width = (WIDTH - left - 10 - GAP * (len(temperatures) - 1)) / len(temperatures)
    height = 0.8 / len(logits)
    told = [shortened(name, 32) for name in logits]
    columns = 2 if room(told) <= COLUMN else 1
    below = BELOW + LINE * math.ceil(len(logits) / columns)

    def draw(figure: Figure) -> None:
        for column, temperature in enumerate(temperatures):
            axes = panel(figure, left + column * (width + GAP), TOP, width, ROW * len(shown))
            drawn: list[Artist] = []
            for number, (values, colour) in enumerate(zip(logits.values(), COLOURS, strict=False)):
                share = torch.softmax(values.double() / temperature, dim=0)[shown]
                places = [row - 0.4 + height * (number + 0.5) for row in range(len(shown))]
                bars = axes.barh(places, share.tolist(), height, color=colour)
                for row, bar in enumerate(bars):
                    bar.set_gid(f"trace-{column}-{number}-{row}")
                drawn.append(bars[0])
            axes.set_title(f"T = {temperature:g}")
            axes.set_ylim(len(shown) - 0.5, -0.5)
            axes.set_yticks(range(len(shown)), names if column == 0 else [])
            axes.tick_params(axis="y", length=0)
            axes.xaxis.set_major_locator(MaxNLocator(2))
            axes.grid(axis="x")
        for label, number in zip(figure.axes[0].get_yticklabels(), shown, strict=True):
            label.set_fontweight("bold" if number == target else "normal")
        figure.legend(drawn, told, loc="lower center", ncols=columns, handlelength=1)

    return inline(draw, TOP + ROW * len(shown) + below)
