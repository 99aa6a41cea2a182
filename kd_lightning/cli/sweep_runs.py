"""The runs of a sweep: each cell in a process and a folder of its own, begun, gone on with, or left as it is."""

import json
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.console import Console

from kd_lightning.cli.child import in_a_process, to_its_end
from kd_lightning.cli.commands import CONFIG, STOPPED, taken
from kd_lightning.cli.recipes import digest
from kd_lightning.cli.sweep_file import Cell
from kd_lightning.cli.yaml_file import check_yaml
from kd_lightning.report.curves import curve, logged
from kd_lightning.run_folder import RunFolder
from kd_lightning.whole_file import write_json


def check_same(path: Path, line: Sequence[str], grid: Sequence[Cell]) -> None:
    """Let a sweep go on in a folder only if its runs are of the same command and configurations.

    Other cells may join them, but none of the name that another one has: a name says the last part of a parameter only.

    Args:
        path: The file in which all that is written down.
        line: Options of ``fit`` that all runs share.
        grid: The cells.

    Raises:
        ValueError: if they are not.
    """
    rest = list(line)
    configs = [check_yaml(name) for option in sorted(CONFIG) for name in taken(rest, option)]
    stated = {"line": list(line), "configs": {str(config): digest(config) for config in configs}}
    options = {cell.name: cell.options() for cell in grid}
    before: dict[str, Any] = json.loads(path.read_text()) if path.exists() else stated
    known: dict[str, list[str]] = before.get("cells", {})
    pairs = {f"other {key}": (before[key], stated[key]) for key in stated}
    pairs |= {f"another {name}": (known[name], options[name]) for name in known.keys() & options}
    for what, (then, now) in pairs.items():
        if then != now:
            raise ValueError(f"{path.parent} holds runs of {what}: {then}, now {now}; give another --name")
    write_json(path, {**stated, "cells": known | options})


def carried_out(cell: Cell, folder: RunFolder, line: Sequence[str], metric: str) -> int:
    """Train a cell, or go on where it was stopped, and test it where that is asked for; the exit code.

    What it prints is added to ``CELL.log`` beside its folder.
    """
    training = to_its_end(folder, [*line, *cell.options()])
    testing = metric.startswith("test/") and not folder.results.exists()
    for command in (training, ["test", str(folder.path)] if testing else None):
        if command is None:
            continue
        with log_of(folder).open("ab") as log:
            done = subprocess.run(in_a_process(command), stdout=log, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            return done.returncode
    return 0


def log_of(folder: RunFolder) -> Path:
    """The file of what a cell printed."""
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
    with ThreadPoolExecutor(parallel) as pool:
        runs = {pool.submit(carried_out, cell, RunFolder(experiment / cell.name), line, metric): cell for cell in grid}
        try:
            for run in as_completed(runs):
                name, code = runs[run].name, run.result()
                folder = RunFolder(experiment / name)
                if code not in {0, STOPPED}:
                    raise ValueError(f"the run {name} ended with exit code {code}: see {log_of(folder)}")
                found[name] = None if code else figure_of(folder, metric)
                said = f"had to stop: see {log_of(folder)}" if code else f"{metric} {found[name]:.4f}"
                console.print(f"[{len(found)}/{len(grid)}] {name}: {said}", markup=False, soft_wrap=True)
        finally:
            pool.shutdown(cancel_futures=True)
    return found
