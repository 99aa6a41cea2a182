"""``kd-lightning sweep FILE``: the grid of a W&B sweep, run here without W&B; cells that have finished stay."""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.console import Console

from kd_lightning import trust
from kd_lightning.cli.commands import CONFIG, STOPPED, taken
from kd_lightning.cli.recipes import digest
from kd_lightning.cli.run_naming import RUNS
from kd_lightning.cli.sweep_file import SEED, Cell, Sweep, cells, read_sweep, short_names
from kd_lightning.cli.yaml_file import check_yaml
from kd_lightning.report.curves import curve, logged
from kd_lightning.report.sweep_map import Point, draw_sweep, sweep_table
from kd_lightning.report.table import for_terminal
from kd_lightning.run_folder import RunFolder, provenance
from kd_lightning.whole_file import write_json

WITHOUT_TRACKING = "--trainer.logger=false"
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


def check_same(path: Path, line: Sequence[str]) -> None:
    """Let a sweep go on in a folder only if its runs are of the same command and configurations.

    Raises:
        ValueError: if they are not.
    """
    rest = list(line)
    configs = [check_yaml(name) for option in sorted(CONFIG) for name in taken(rest, option)]
    stated = {"line": list(line), "configs": {str(config): digest(config) for config in configs}}
    if path.exists() and (before := json.loads(path.read_text())) != stated:
        key = next(key for key in stated if before.get(key) != stated[key])
        raise ValueError(
            f"{path.parent} holds runs of other {key}: {before.get(key)}, now {stated[key]}; give another --name"
        )
    write_json(path, stated)


def carried_out(cell: Cell, folder: RunFolder, line: Sequence[str], metric: str) -> int:
    """Train a cell, or go on where it was stopped, and test it where that is asked for; the exit code.

    What it prints is added to ``CELL.log`` beside its folder.
    """
    commands = []
    if not folder.record.exists():
        if folder.config.exists():
            commands.append(["resume", str(folder.path)])
        else:
            if folder.path.exists():
                folder.path.rmdir()  # claimed, but never begun
            named = ["--experiment", folder.path.parent.name, "--run", folder.path.name]
            commands.append(["fit", *line, *cell.options(), *named])
    if metric.startswith("test/") and not folder.results.exists():
        commands.append(["test", str(folder.path)])
    allowed = [word for module in sorted(trust.ALLOWED - trust.BUILT_IN) for word in ("--allow", module)]
    with log_of(folder).open("ab") as log:
        for command in commands:
            run = [sys.executable, "-m", "kd_lightning", *command, *allowed]
            if code := subprocess.run(run, stdout=log, stderr=subprocess.STDOUT, check=False).returncode:
                return code
    return 0


def log_of(folder: RunFolder) -> Path:
    """Where it stands what a cell printed."""
    return folder.path.with_name(f"{folder.path.name}.log")


def figure_of(folder: RunFolder, metric: str) -> float:
    """A figure of a run: of its test, or the last one that its training logged.

    Raises:
        ValueError: if it has none of that name.
    """
    if metric.startswith("test/"):
        figures = json.loads(folder.results.read_text())
        if metric in figures:
            return float(figures[metric])
        raise ValueError(f"{folder.results} has no {metric}")
    values = curve(folder, metric)[1]
    if not values:
        raise ValueError(f"{folder.path} has not logged {metric}, but {', '.join(logged(folder))}")
    return values[-1]


def outcomes(
    grid: Sequence[Cell], experiment: Path, line: Sequence[str], metric: str, parallel: int, console: Console
) -> dict[str, float | None]:
    """Carry out a grid; cell -> its figure, None where its training had to stop, as where it diverged.

    Raises:
        ValueError: if a command could not begin, or was asked to leave; then no other cell is begun.
    """
    found: dict[str, float | None] = {}
    folders = {cell: RunFolder(experiment / cell.name) for cell in grid}
    with ThreadPoolExecutor(parallel) as pool:
        runs = {pool.submit(carried_out, cell, folders[cell], line, metric): cell for cell in grid}
        try:
            for run in as_completed(runs):
                cell, code = runs[run], run.result()
                if code not in {0, STOPPED}:
                    log = log_of(folders[cell])
                    raise ValueError(f"the run of {cell.name} ended with exit code {code}: see {log}")
                found[cell.name] = None if code else figure_of(folders[cell], metric)
                said = f"had to stop: see {log_of(folders[cell])}" if code else f"{metric} {found[cell.name]:.4f}"
                console.print(f"[{len(found)}/{len(grid)}] {cell.name}: {said}", markup=False, soft_wrap=True)
        finally:
            pool.shutdown(cancel_futures=True)
    return found


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
    parameters = with_seeds(sweep, given.seeds)
    if given.parallel < 1:
        raise ValueError(f"--parallel must be >= 1, got {given.parallel}")
    if twice := [key for key in parameters if any(word.split("=")[0] == f"--{key}" for word in overrides)]:
        raise ValueError(f"--{twice[0]} is swept over: leave it out, or change it in {given.file}")
    line = [*sweep.line, WITHOUT_TRACKING, *overrides]
    experiment, grid = RUNS / (given.name or sweep.name), cells(parameters)
    check_same(experiment / STATED, line)
    figures = outcomes(grid, experiment, line, sweep.metric, given.parallel, console)
    found = points(grid, figures)
    table, best = sweep_table(found, sweep.metric), (max if sweep.largest else min)
    console.print(for_terminal(table, sweep.name))
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
