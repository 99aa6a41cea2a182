"""The commands: LightningCLI's, and those that take a run's folder instead of a configuration."""

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException

from kd_lightning.cli.allocator import keep_freed_memory
from kd_lightning.cli.door import Door
from kd_lightning.cli.parser import guard
from kd_lightning.cli.tracking import refusals
from kd_lightning.cli.yaml_file import check_yaml
from kd_lightning.run_folder import RunFolder, broken

MENDABLE = (ValueError, FileNotFoundError, NotADirectoryError, PermissionError, MisconfigurationException)
USAGE, STOPPED = 2, 1
CONFIG = {"--config", "-c"}
OF_RUNS = {"export", "report", "sweep"}  # commands with a file of their own, which has a function `command`
Line = list[str]


def taken(arguments: Line, option: str) -> list[str]:
    """The values of an option, which is taken out of the arguments; ``--option VALUE`` and ``--option=VALUE``.

    Raises:
        ValueError: if the last one has no value.
    """
    values: list[str] = []
    rest: Line = []
    given = iter(arguments)
    for argument in given:
        if argument == option:
            value = next(given, None)
            if value is None:
                raise ValueError(f"{option} needs a value")
            values.append(value)
        elif argument.startswith(f"{option}="):
            values.append(argument.partition("=")[2])
        else:
            rest.append(argument)
    arguments[:] = rest
    return values


def run_of(arguments: Line) -> RunFolder:
    """The run folder that a command names.

    Raises:
        ValueError: if it names none, FileNotFoundError: if it is no run's.
    """
    if len(arguments) < 2 or arguments[1].startswith("-"):
        raise ValueError(f"{arguments[0]} needs the folder of a run: kd-lightning {arguments[0]} RUN_DIR")
    folder = RunFolder(Path(arguments[1]))
    if not folder.path.is_dir():
        raise FileNotFoundError(f"there is no run folder {folder.path}")
    if not folder.config.is_file():
        raise FileNotFoundError(f"{folder.path} is not the folder of a run: it has no config.yaml")
    return folder


def resumed(arguments: Line) -> tuple[Line, RunFolder] | None:
    """The command line that goes on with a run from its newest whole checkpoint; None if the run has finished.

    Raises:
        ValueError: if it has checkpoints, and none is whole.
    """
    folder = run_of(arguments)
    if folder.record.exists():
        print(f"{folder.path} has finished: there is nothing to resume")
        return None
    for part in folder.checkpoints.glob(".*.part"):
        part.unlink()
    line = ["fit", "--config", str(folder.config), *arguments[2:]]
    candidates = [path for path in (folder.last, folder.best()) if path is not None and path.exists()]
    for checkpoint in candidates:
        if fault := broken(checkpoint):
            print(f"kd-lightning: {fault}", file=sys.stderr)
        else:
            print(f"resuming {folder.path} from {checkpoint}")
            return [*line, "--ckpt_path", str(checkpoint)], folder
    if candidates:
        raise ValueError(f"no checkpoint of {folder.path} is whole: start a new run from its config.yaml")
    print(f"resuming {folder.path} from its start: it has no checkpoint")
    return line, folder


def of_run(arguments: Line) -> tuple[Line, RunFolder]:
    """The command line that tests a run, or predicts with it.

    Raises:
        ValueError: for a checkpoint that is neither last nor best, FileNotFoundError: if the run does not have it.
    """
    folder = run_of(arguments)
    checkpoint = folder.checkpoint((taken(arguments, "--ckpt") or ["last"])[-1])
    return [arguments[0], "--config", str(folder.config), *arguments[2:], "--ckpt_path", str(checkpoint)], folder


def translated(arguments: Line) -> tuple[Line, RunFolder | None] | None:
    """A command line as LightningCLI knows it, and the run that it is about; None if there is nothing to do."""
    if arguments[0] == "resume":
        return resumed(arguments)
    if arguments[0] in {"test", "validate", "predict"} and len(arguments) > 1 and not arguments[1].startswith("-"):
        return of_run(arguments)
    return arguments, None


def with_configs(arguments: Line) -> Line:
    """The command line with the file of each configuration, which may be named as in the package.

    Raises:
        FileNotFoundError: if there is none, ValueError: if it is not sound.
    """
    line = list(arguments)
    for position, argument in enumerate(arguments):
        option, equals, name = argument.partition("=")
        if option in CONFIG and equals:
            line[position] = f"{option}={check_yaml(name)}"
        elif option in CONFIG and position + 1 < len(line):
            line[position + 1] = str(check_yaml(line[position + 1]))
    return line


def mendable() -> tuple[type[Exception], ...]:
    """What is raised for a fault that the user can mend, by the packages that are loaded."""
    return (*MENDABLE, *refusals())


def run(arguments: Sequence[str]) -> int:
    """Carry out a command line.

    Returns:
        The exit code: 0; 2 for what the user can mend, found before a step was made; 1 for a run that had to stop.
    """
    line = list(arguments)
    door: Door | None = None
    try:
        keep_freed_memory()
        guard(taken(line, "--allow"))
        if line[0] in OF_RUNS:
            importlib.import_module(f"kd_lightning.cli.{line[0]}").command(line[1:])
            return 0
        meant = translated(line)
        if meant is None:
            return 0
        line, folder = meant
        door = Door(with_configs(line), folder)
        door.carry_out()
    except mendable() as error:
        return said(error, STOPPED if door is not None and door.trainer.global_step > 0 else USAGE)
    except (ArithmeticError, OSError) as error:
        return said(error, STOPPED)
    return 0


def said(error: Exception, code: int) -> int:
    """Print an error as one message, with its traceback where KD_LIGHTNING_DEBUG is set; the code."""
    if os.environ.get("KD_LIGHTNING_DEBUG"):
        traceback.print_exc()
    print(f"kd-lightning: error: {error}", file=sys.stderr)
    if not os.environ.get("KD_LIGHTNING_DEBUG"):
        print("  (KD_LIGHTNING_DEBUG=1 shows where)", file=sys.stderr)
    return code
