"""Maps of a sweep: a figure over two parameters as colours, over one as a line."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from kd_lightning.report.methods import Statistic
from kd_lightning.report.table import TableData

SIDE, DPI = 5.0, 120  # inches of a panel


class Point(NamedTuple):
    """A setting of the parameters, and what each seed reached there; none where nobody got to the end."""

    parameters: Mapping[str, Any]
    values: list[float]

    @property
    def mean(self) -> float:
        """Mean over the seeds; nan without one."""
        return Statistic(self.values).mean if self.values else float("nan")

    @property
    def std(self) -> float:
        """Sample standard deviation over the seeds, 0 for fewer than two."""
        return Statistic(self.values).std


def is_number(value: Any) -> bool:
    """Whether it has a place on an axis of numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def drawable(points: Sequence[Point]) -> list[Point]:
    """The points with numbers where all values of a parameter are, else with words; without a parameter with a word."""
    if not points[0].parameters:
        return [Point({"": "all seeds"}, point.values) for point in points]
    words = {name for point in points for name, value in point.parameters.items() if not is_number(value)}
    return [
        Point({name: str(value) if name in words else value for name, value in point.parameters.items()}, point.values)
        for point in points
    ]


def varied(points: Sequence[Point]) -> dict[str, list[Any]]:
    """The parameters with more than one value, and their values in the order in which they come."""
    values: dict[str, list[Any]] = {name: [] for name in points[0].parameters}
    for point in points:
        for name, value in point.parameters.items():
            if value not in values[name]:
                values[name].append(value)
    return {name: each for name, each in values.items() if len(each) > 1}


def sweep_table(points: Sequence[Point], metric: str) -> TableData:
    """A row for each setting: the parameters, mean and deviation of the figure, and the number of seeds."""
    rows = []
    for point in points:
        deviation = f" ± {point.std:.4f}" if len(point.values) > 1 else ""
        reached = f"{point.mean:.4f}{deviation}" if point.values else "-"
        rows.append([*map(str, point.parameters.values()), reached, str(len(point.values))])
    return TableData([*points[0].parameters, metric, "seeds"], rows)


def means(points: Sequence[Point], rows: tuple[str, Sequence[Any]], columns: tuple[str, Sequence[Any]]) -> Tensor:
    """Means ``[R, C]`` over two parameters, each a name and its values; nan where there is no point with a value."""
    found = {(point.parameters[rows[0]], point.parameters[columns[0]]): point.mean for point in points}
    nan = float("nan")
    return torch.tensor([[found.get((row, column), nan) for column in columns[1]] for row in rows[1]])


def draw_line(axes: Axes, points: Sequence[Point], name: str) -> None:
    """Mean and standard deviation over one parameter; words stand at equal distances."""
    axes.errorbar(
        [point.parameters[name] for point in points],
        [point.mean for point in points],
        [point.std for point in points],
        marker="o",
        capsize=3,
    )
    axes.set_xlabel(name)
    axes.grid(alpha=0.3)


def draw_map(axes: Axes, matrix: Tensor, rows: Sequence[str], columns: Sequence[str], ends: tuple[float, float]) -> Any:
    """A matrix ``[R, C]`` as colours between two ends, with its values; nan leaves a cell empty."""
    image = axes.imshow(matrix.numpy(), aspect="auto", cmap="viridis", vmin=ends[0], vmax=ends[1], origin="lower")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    for (row, column), value in np.ndenumerate(matrix.numpy()):
        if not np.isnan(value):
            bright = value > sum(ends) / 2  # viridis ends in yellow
            axes.text(column, row, f"{value:.4f}", ha="center", va="center", color="black" if bright else "white")
    return image


def draw_sweep(points: Sequence[Point], metric: str, path: Path) -> None:
    """Draw a figure over the parameters that vary: the first one up, the second one across; a lone one as a line.

    Further parameters make further panels, one for each combination of their values.

    Args:
        points: At least one.
        metric: The figure's name.
        path: Of the picture (PNG).
    """
    points = drawable(points)
    names = varied(points)
    first = list(names)[:2] or [next(iter(points[0].parameters))]
    rest = {name: values for name, values in names.items() if name not in first}
    combinations = [dict(zip(rest, values, strict=True)) for values in product(*rest.values())]
    picture = Figure(figsize=(SIDE * len(combinations), 0.8 * SIDE), layout="constrained")
    panels = picture.subplots(1, len(combinations), squeeze=False)[0]
    reached = [point.mean for point in points if point.values] or [0.0]
    for axes, fixed in zip(panels, combinations, strict=True):
        here = [point for point in points if fixed.items() <= dict(point.parameters).items()]
        if len(first) == 1:
            draw_line(axes, here, first[0])
            axes.set_ylabel(metric)
        else:
            (up, rows), (across, columns) = ((name, names[name]) for name in first)
            matrix = means(here, (up, rows), (across, columns))
            image = draw_map(axes, matrix, list(map(str, rows)), list(map(str, columns)), (min(reached), max(reached)))
            axes.set(xlabel=across, ylabel=up)
        axes.set_title(", ".join(f"{name} = {value}" for name, value in fixed.items()))
    if len(first) == 2:
        picture.colorbar(image, ax=list(panels), label=metric)
    picture.savefig(path, dpi=DPI)
