"""``kd-lightning report RUN [RUN ...]``: runs compared, as tables and as a page."""

import argparse
import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

from rich.console import Console
from rich.markup import escape

from kd_lightning.cli.looking import OF_A_TEST, check_options, look
from kd_lightning.cli.quiet import quiet
from kd_lightning.report import Comparison, Examined, Examiner, Profiler, as_page, compare, for_terminal
from kd_lightning.report.methods import figures_of
from kd_lightning.run_folder import RunFolder
from kd_lightning.whole_file import write_json, write_text

PAGE, MARKDOWN, FIGURES = "report.html", "report.md", "report.json"


class Asked(NamedTuple):
    """What a command line asks for."""

    runs: Sequence[RunFolder]
    output: Path
    ckpt: str
    options: Sequence[str]
    unfinished: Sequence[RunFolder] = ()


def runs_of(path: Path) -> tuple[list[RunFolder], list[RunFolder]]:
    """The run in a folder, or those in the folders in it: which have been trained to the end, and which have not.

    Raises:
        FileNotFoundError: if none has, ValueError: if the folder is that of a run that has not.
    """
    run = RunFolder(path)
    if run.config.is_file():
        if not run.record.is_file():
            raise ValueError(f"{path} has not finished: kd-lightning resume {path}")
        return [run], []
    there = [RunFolder(config.parent) for config in sorted(path.glob("*/config.yaml"))]
    finished = [each for each in there if each.record.is_file()]
    if not finished:
        raise FileNotFoundError(f"{path} is neither the folder of a run nor one of finished runs")
    return finished, [each for each in there if each not in finished]


def divided(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments of the report, and the options of a test, each with the value that follows it."""
    own: list[str] = []
    options: list[str] = []
    given = iter(arguments)
    for argument in given:
        if argument.startswith(OF_A_TEST):
            options += [argument, *islice(given, 0 if "=" in argument else 1)]
        else:
            own.append(argument)
    return own, options


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = argparse.ArgumentParser(
        "kd-lightning report",
        description="Test runs, compare them, and write report.html, report.md and report.json. Runs that differ only "
        "in their seed are one method.",
        epilog="Options of a test, as --data.init_args.root=DATA, are passed on to the test of each run.",
        allow_abbrev=False,
    )
    made.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run, or of an experiment")
    made.add_argument("--output", type=Path, help="folder of the report; report/ beside the runs by default")
    made.add_argument("--ckpt", choices=["last", "best"], default="last", help="which checkpoint; last by default")
    return made


def asked(arguments: Sequence[str]) -> Asked:
    """What a command line asks for.

    Raises:
        ValueError: for an unknown option or an unfinished run, FileNotFoundError: for a folder without runs.
    """
    own, options = divided(arguments)
    given, unknown = parser().parse_known_intermixed_args(own)
    check_options("report", unknown)
    found = [runs_of(path) for path in given.runs]
    runs = list({run.path.resolve(): run for finished, _ in found for run in finished}.values())
    unfinished = [run for _, others in found for run in others]
    beside = Path(os.path.commonpath([run.path.parent.resolve() for run in runs]))
    output = given.output or Path(os.path.relpath(beside / "report"))
    return Asked(runs, output, given.ckpt, options, unfinished)


def examined(run: RunFolder, ckpt: str, profiler: Profiler, options: Sequence[str]) -> Examined:
    """A run, tested at a checkpoint; and its top-1 at the best one."""
    examiner = Examiner(run, profiler)
    door = look(run, examiner, ckpt, options)
    found, best = examiner.examined(), run.best()
    if best is None:
        return found
    if ckpt == "best":
        return found._replace(best_top1=figures_of(found)["top1"])
    cast(Any, door.trainer).callbacks.remove(examiner)  # it has seen what it came for
    with quiet():
        figures = door.trainer.test(door.model, datamodule=door.datamodule, ckpt_path=best, verbose=False)
    return found._replace(best_top1=figures[0]["test/top1"])


def made(wanted: Asked, console: Console) -> Comparison:
    """The report that is asked for, written and shown."""
    profiler, results = Profiler(), []
    for run in wanted.unfinished:
        console.print(f"left out: {run.path} has not finished", markup=False, soft_wrap=True)
    for run in wanted.runs:
        with console.status(f"testing {escape(str(run.path))}"):
            results.append(examined(run, wanted.ckpt, profiler, wanted.options))
    report = compare(results, wanted.ckpt)
    write_json(wanted.output / FIGURES, report.as_json())
    write_text(wanted.output / MARKDOWN, report.as_markdown())
    write_text(wanted.output / PAGE, as_page(report))
    console.print(report.tested())
    for title, table in report.tables().items():
        console.print(for_terminal(table, title, console.width))
    console.print(f"the page: {wanted.output / PAGE}", markup=False, soft_wrap=True)
    return report


def command(arguments: list[str]) -> None:
    """Carry out the command."""
    made(asked(arguments), Console())
