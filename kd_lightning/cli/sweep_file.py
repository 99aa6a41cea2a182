"""Sweep files: W&B's definition of a sweep, read as a plain grid of runs."""

import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from kd_lightning.cli.yaml_file import check_yaml

ARGS = "${args}"  # where W&B puts the parameters of a run
SEED = "seed_everything"
PARTS_WITHOUT_A_NAME = {"init_args"}


class Sweep(NamedTuple):
    """A grid of runs.

    Attributes:
        name: Its experiment.
        line: Options of ``fit`` that all runs share.
        parameters: Key -> its values.
        metric: The figure that is looked at, as ``val/top1``.
        largest: Whether the largest value of it is the best.
    """

    name: str
    line: Sequence[str]
    parameters: Mapping[str, Sequence[Any]]
    metric: str
    largest: bool


class Cell(NamedTuple):
    """One run of a grid: its folder's name, and the values of the parameters."""

    name: str
    parameters: Mapping[str, Any]

    def options(self) -> list[str]:
        """As W&B's agents write them."""
        return [f"--{key}={value}" for key, value in self.parameters.items()]


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The fewest last parts of each key that tell it from the others, as ``kd.weight`` from ``ce.weight``."""
    parts = {key: [part for part in key.split(".") if part not in PARTS_WITHOUT_A_NAME] for key in keys}

    def last(key: str, count: int) -> str:
        return ".".join(parts[key][-count:])

    found = {}
    for key in keys:
        counts = range(1, len(parts[key]) + 1)
        alone = (n for n in counts if all(last(key, n) != last(other, n) for other in keys if other != key))
        found[key] = last(key, next(alone, len(parts[key])))
    return found


def _metric(path: Path, stated: Any) -> tuple[str, bool]:
    match stated:
        case {"name": str(figure)} if (goal := stated.get("goal", "minimize")) in ("maximize", "minimize"):
            return figure, goal == "maximize"  # W&B's default is minimize
    raise ValueError(f"{path}: metric must be {{name: FIGURE, goal: maximize or minimize}}, got {stated}")


def _parameters(path: Path, stated: Any) -> tuple[list[str], dict[str, list[Any]]]:
    if not isinstance(stated, dict):
        raise ValueError(f"{path}: parameters must be keys with what each may be, got {stated}")
    fixed: list[str] = []
    varied: dict[str, list[Any]] = {}
    for key, given in stated.items():
        match given:
            case {"value": value, **rest} if not rest:
                fixed.append(f"--{key}={value}")
            case {"values": [_, *_] as values, **rest} if not rest:
                varied[key] = values
            case _:
                raise ValueError(f"{path}: parameters.{key} must have a list of values or a value, got {given}")
    if not varied:
        raise ValueError(f"{path}: parameters must hold one with values")
    return fixed, varied


def read_sweep(name: str | Path) -> Sweep:
    """The grid of a file, which is a path or a name in the package.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no grid of ``kd-lightning fit``, with what would be right.
    """
    path = check_yaml(name)
    stated = yaml.safe_load(path.read_text())
    if (method := stated.get("method")) != "grid":
        raise ValueError(f"{path}: method must be grid, got {method}; other methods are for the agents of W&B")
    command = stated.get("command") or []
    if not isinstance(command, list) or "fit" not in command or command[-1] != ARGS:
        raise ValueError(f"{path}: command must be kd-lightning, fit, its options, and last {ARGS}, got {command}")
    metric, largest = _metric(path, stated.get("metric"))
    fixed, values = _parameters(path, stated.get("parameters") or {})
    line = [*map(str, command[command.index("fit") + 1 : -1]), *fixed]
    return Sweep(str(stated.get("name", path.stem)), line, values, metric, largest)


def cells(parameters: Mapping[str, Sequence[Any]]) -> list[Cell]:
    """The cells of a grid, in its order, each named by its values.

    Raises:
        ValueError: if two have one name.
    """
    names, found = short_names(list(parameters)), {}
    for values in product(*parameters.values()):
        stated = dict(zip(parameters, values, strict=True))
        name = ",".join(f"{names[key]}={re.sub(r'[^A-Za-z0-9.+_-]', '-', str(value))}" for key, value in stated.items())
        if name in found:
            raise ValueError(f"parameters: two runs would have the name {name}")
        found[name] = Cell(name, stated)
    return list(found.values())
