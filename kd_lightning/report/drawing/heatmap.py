"""A matrix as colours: what the heatmaps of a report share."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.nn import functional

from kd_lightning.report.drawing.svg import TICK, WIDTH, inline, panel, room, shortened

LINE, EDGE = 13, 8  # px that a tick's label needs, px of margin
FINEST = 256  # cells a side: about as many as a picture has pixels


class Colours(NamedTuple):
    """How values become colours.

    Attributes:
        name: matplotlib's colour map.
        high: Value of its upper end; the lower one is 0.
        label: What the values are.
        gamma: Below 1, small values are spread out.
        cells: Format of the values in the cells, where there is room for them.
    """

    name: str
    high: float
    label: str
    gamma: float = 1.0
    cells: str = ".2f"


def heatmap(matrix: Tensor, rows: Sequence[str], columns: Sequence[str], sides: tuple[str, str], look: Colours) -> str:
    """A matrix ``[rows, columns]``, its first row on top; nan leaves a cell empty.

    Every name is at its row where the rows are high enough, else every k-th.

    Args:
        matrix: Values, >= 0.
        rows: Names of the rows.
        columns: Names of the columns.
        sides: What the rows are, and what the columns are.
        look: Its colours.

    Raises:
        ValueError: if there is not a name for each row and column.
    """
    if matrix.shape != (len(rows), len(columns)):
        raise ValueError(f"matrix must be [{len(rows)}, {len(columns)}] as there are names, got {list(matrix.shape)}")
    longest = 14 if max(matrix.shape) <= 20 else 9  # of many classes the cells need the room
    down, across = ([shortened(name, longest) for name in names] for names in (rows, columns))
    left = 20 + room(down)
    width = WIDTH - left - EDGE
    height = width * min(1.0, len(rows) / len(columns))
    upright = max(map(len, across)) > 2
    below = height + EDGE + 26 + (room(across) if upright else LINE)

    def draw(figure: Figure) -> None:
        axes = panel(figure, left, EDGE, width, height)
        image = axes.imshow(
            coarser(matrix).numpy(),
            extent=(-0.5, len(columns) - 0.5, len(rows) - 0.5, -0.5),
            aspect="auto",
            interpolation="none",
            cmap=look.name,
            norm=PowerNorm(look.gamma, 0, look.high),
        )
        image.set_gid("trace-cells")
        every = math.ceil(LINE * len(rows) / height)
        axes.set_yticks(range(0, len(rows), every), down[::every])
        every = math.ceil(LINE * len(columns) / width)
        axes.set_xticks(range(0, len(columns), every), across[::every], rotation=90 if upright else 0)
        axes.set(ylabel=sides[0], xlabel=sides[1])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        write_cells(axes, image, matrix, look.cells, width / len(columns))
        bar = figure.colorbar(image, cax=panel(figure, left, below, width, 8), orientation="horizontal")
        bar.outline.set_visible(False)
        bar.ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        bar.set_label(look.label)

    return inline(draw, below + 48)


def off_diagonal(matrix: Tensor) -> Tensor:
    """A square matrix in float64 with nan on its diagonal."""
    return matrix.double().masked_fill(torch.eye(len(matrix), dtype=torch.bool), torch.nan)


def coarser(matrix: Tensor) -> Tensor:
    """A matrix of at most `FINEST` rows and columns, with the maximum of the cells that fall together.

    It is nan only where all of them are.
    """
    sides = [min(side, FINEST) for side in matrix.shape]
    known = matrix.float().masked_fill(matrix.isnan(), -torch.inf)
    pooled: Tensor = functional.adaptive_max_pool2d(known[None], sides)[0]
    return pooled.masked_fill(pooled == -torch.inf, torch.nan)


def write_cells(axes: Axes, image: AxesImage, matrix: Tensor, form: str, width: float) -> None:
    """Write the values other than 0, black on bright and white on dark cells, if each fits into a cell's width (px)."""
    if width < LINE:
        return
    texts = [[format(value, form) if abs(value) > 0 else "" for value in row] for row in matrix.tolist()]  # not nan
    if width < 7 * max(len(text) for row in texts for text in row):
        return
    red, green, blue, _ = np.moveaxis(image.to_rgba(matrix.numpy()), -1, 0)
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
    for row, column in np.ndindex(*matrix.shape):
        colour = "#000000" if bright[row, column] else "#ffffff"
        axes.text(column, row, texts[row][column], color=colour, fontsize=TICK, ha="center", va="center")
