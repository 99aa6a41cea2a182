"""``kd-lightning report RUN [RUN ...]``: runs compared, as tables and as a page."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from rich.console import Console

from kd_lightning.cli.looking import check_options, look
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


def runs_of(path: Path) -> list[RunFolder]:
    """The run in a folder, or those in the folders in it that have been tested or trained to the end.

    Raises:
        FileNotFoundError: if there is none.
    """
    found = [path] if (path / "config.yaml").is_file() else sorted(record.parent for record in path.glob("*/run.json"))
    if not found:
        raise FileNotFoundError(f"{path} is neither the folder of a run nor one of finished runs")
    return [RunFolder(each) for each in found]


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = argparse.ArgumentParser(
        "kd-lightning report",
        description="Test runs, compare them, and write report.html, report.md and report.json. Runs that differ only "
        "in their seed are one method.",
        epilog="Options of a test, as --data.init_args.root=DATA, are passed on to the test of each run.",
        allow_abbrev=False,
    )
    made.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or of an experiment's runs")
    made.add_argument("--output", type=Path, help="folder of the report; report/ beside the runs by default")
    made.add_argument("--ckpt", choices=["last", "best"], default="last", help="which checkpoint; last by default")
    return made


def asked(arguments: Sequence[str]) -> Asked:
    """What a command line asks for.

    Raises:
        ValueError: for an unknown option, FileNotFoundError: for a folder without runs.
    """
    given, options = parser().parse_known_args(arguments)
    check_options("report", options)
    runs = list({run.path.resolve(): run for path in given.runs for run in runs_of(path)}.values())
    beside = Path(os.path.commonpath([run.path.parent.resolve() for run in runs]))
    output = given.output or Path(os.path.relpath(beside / "report"))
    return Asked(runs, output, given.ckpt, options)


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
    for run in wanted.runs:
        with console.status(f"testing {run.path}"):
            results.append(examined(run, wanted.ckpt, profiler, wanted.options))
    report = compare(results)
    write_json(wanted.output / FIGURES, report.as_json())
    write_text(wanted.output / MARKDOWN, report.as_markdown())
    write_text(wanted.output / PAGE, as_page(report))
    for title, table in report.tables().items():
        console.print(for_terminal(table, title, console.width))
    console.print(f"the page: {wanted.output / PAGE}", soft_wrap=True)
    return report


def command(arguments: list[str]) -> None:
    """Carry out the command."""
    made(asked(arguments), Console())
