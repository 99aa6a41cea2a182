"""The plot: images per second of each contender, with its range."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.speed.table import SAID

matplotlib.use("Agg")
from matplotlib import pyplot

OURS, OTHERS = "tab:blue", "tab:gray"
OWN = {"warm", "cold", "online", "loader", "one_rank", "two_ranks"}


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Write the plot; a contender that is missing has no bar."""
    parts = {name: pair["contenders"] for name, pair in results["pairs"].items()}
    parts |= {"loaders alone": results["loaders"]["contenders"], "ranks": results["ranks"]["contenders"]}
    figure, axes = pyplot.subplots(len(parts), 1, figsize=(8, 2.6 * len(parts)), squeeze=False, layout="constrained")
    for axis, (title, contenders) in zip(axes.flat, parts.items(), strict=True):
        there = {name: value["images_per_second"] for name, value in contenders.items() if "missing" not in value}
        medians = [value["median"] for value in there.values()]
        below = [value["median"] - value["min"] for value in there.values()]
        above = [value["max"] - value["median"] for value in there.values()]
        colours = [OURS if name in OWN else OTHERS for name in there]
        axis.barh([SAID[name] for name in there], medians, xerr=[below, above], color=colours, capsize=3)
        axis.invert_yaxis()
        axis.set_title(title)
        axis.set_xlabel("images per second")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
