"""``kd-lightning sweep FILE``: the grid of a W&B sweep, run here without W&B; cells that have finished stay."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from kd_lightning.cli.run_naming import RUNS, check_folder_name
from kd_lightning.cli.sweep_file import SEED, Cell, Sweep, cells, read_sweep, short_names
from kd_lightning.cli.sweep_runs import check_same, outcomes
from kd_lightning.report.sweep_map import Point, draw_sweep, sweep_table
from kd_lightning.report.table import for_terminal
from kd_lightning.run_folder import provenance
from kd_lightning.whole_file import write_json

WITHOUT_TRACKING = "--trainer.logger=false"
NAMES = {"--experiment", "--run"}  # of a run, which a sweep names by its cell
STATED, RESULTS, PICTURE = "sweep.json", "results.json", "sweep.png"


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = argparse.ArgumentParser(
        "kd-lightning sweep",
        description="Run the grid of a W&B sweep file without W&B: each cell is a run in runs/NAME/. What has finished "
        "is not run again, what was stopped goes on. At the end: a table, results.json and sweep.png.",
        epilog="Other options, as --trainer.max_epochs=10, are passed on to each run.",
        allow_abbrev=False,
    )
    made.add_argument("file", metavar="FILE", help="the sweep, as configs/sweep/digits_temperature_alpha.yaml")
    made.add_argument("--seeds", help="run each cell with these seeds, as 0,1,2; that of its configuration by default")
    made.add_argument("--parallel", type=int, default=1, help="so many runs at a time; 1 by default")
    made.add_argument("--name", help="folder under runs/; the sweep's name by default")
    return made


def with_seeds(sweep: Sweep, seeds: str | None) -> dict[str, Sequence[Any]]:
    """The parameters of a sweep and the seeds.

    Raises:
        ValueError: if ``seeds`` are no numbers.
    """
    parameters = dict(sweep.parameters)
    if seeds is not None:
        try:
            parameters[SEED] = [int(seed) for seed in seeds.split(",")]
        except ValueError:
            raise ValueError(f"--seeds must be numbers with commas between, as 0,1,2, got {seeds}") from None
    return parameters


def check_overrides(overrides: Sequence[str], parameters: Mapping[str, Any], file: str) -> None:
    """Let options pass that are handed on to each run.

    Raises:
        ValueError: for one that names the runs, or that is swept over.
    """
    varied = {f"--{key}" for key in parameters}
    for option in (word.partition("=")[0] for word in overrides):
        if option in NAMES:
            raise ValueError(f"a sweep has no option {option}: its runs are runs/NAME/CELL, so give --name")
        if option in varied:
            raise ValueError(f"{option} is swept over: leave it out, or change it in {file}")


def points(grid: Sequence[Cell], figures: Mapping[str, float | None]) -> list[Point]:
    """The grid without its seeds: parameters by their short names, and the figures of all seeds."""
    found: dict[str, Point] = {}
    names = short_names([key for key in grid[0].parameters if key != SEED])
    for cell in grid:
        stated = {name: cell.parameters[key] for key, name in names.items()}
        point = found.setdefault(repr(stated), Point(stated, []))
        if (value := figures[cell.name]) is not None:
            point.values.append(value)
    return list(found.values())


def command(arguments: list[str]) -> None:
    """Carry out the command.

    Raises:
        ValueError: if it, or a run, cannot begin, ChildProcessError: if a run had to stop.
    """
    given, overrides = parser().parse_known_args(arguments)
    sweep, console = read_sweep(given.file), Console()
    name = given.name or sweep.name
    check_folder_name(f"--name, or name in {given.file},", name)
    parameters = with_seeds(sweep, given.seeds)
    if given.parallel < 1:
        raise ValueError(f"--parallel must be >= 1, got {given.parallel}")
    check_overrides(overrides, parameters, given.file)
    line = [*sweep.line, WITHOUT_TRACKING, *overrides]
    experiment, grid = RUNS / name, cells(parameters)
    check_same(experiment / STATED, line, grid)
    figures = outcomes(grid, experiment, line, sweep.metric, given.parallel, console)
    found = points(grid, figures)
    table, best = sweep_table(found, sweep.metric), (max if sweep.largest else min)
    console.print(for_terminal(table, sweep.name, console.width))
    reached = [point for point in found if point.values]
    top = best(reached, key=lambda point: point.mean) if reached else None
    write_json(
        experiment / RESULTS,
        {
            "metric": sweep.metric,
            "best": top and {"parameters": top.parameters, "mean": top.mean, "std": top.std},
            "cells": [{"run": cell.name, **cell.parameters, sweep.metric: figures[cell.name]} for cell in grid],
            **provenance(),
        },
    )
    draw_sweep(found, sweep.metric, experiment / PICTURE)
    console.print(f"{experiment / RESULTS}, {experiment / PICTURE}", soft_wrap=True)
    if stopped := [name for name, value in figures.items() if value is None]:
        raise ChildProcessError(f"{len(stopped)} of {len(grid)} runs had to stop: {', '.join(stopped)}")
