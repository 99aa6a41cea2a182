"""``kd-lightning list TOPIC [PATTERN]``: what there is to name in a configuration, told without importing torch."""

import ast
import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import takewhile
from typing import Any

import yaml

from kd_lightning.cli.sources import PACKAGE, first_line, folder_of, of_kind
from kd_lightning.packaged import configs

HELP = """kd-lightning list TOPIC [PATTERN]: what there is to name

topics:
  models    networks for 32x32 images of this package, and those of timm
  losses    what is matched
  schemes   how it is arranged: the classes of model.class_path
  configs   the configurations of the package, as --config takes them; those under sweep/ are for kd-lightning sweep

A PATTERN with *, ? or [] is matched with the whole name, another one is a part of it; of losses, schemes and configs,
also of what is said of them:
  kd-lightning list models 'cifar_resnet*'
  kd-lightning list losses fitnets
  kd-lightning list configs digits/offline
"""
# Of timm's files, which ast takes ten times as long to read.
TIMMS_MODEL = re.compile(r"^@register_model\s*\ndef (\w+)\(", re.MULTILINE)
Row = tuple[str, ...]


def natural(name: str) -> list[int | str]:
    """A key that sorts names as a person counts, and as timm does: resnet8 before resnet20."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]


def aligned(rows: Sequence[Row], margin: str = "") -> str:
    """Rows as lines whose columns begin below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "".join(f"{margin}{line}".rstrip() + "\n" for line in lines)


def own_models() -> dict[str, str]:
    """Networks of this package, with what they are."""
    files = [ast.parse(path.read_text(encoding="utf-8")) for path in (PACKAGE / "models/cifar").glob("*.py")]
    functions = [node for file in files for node in file.body if isinstance(node, ast.FunctionDef)]
    return {
        node.name: first_line(node) for node in functions if "register_model" in map(ast.unparse, node.decorator_list)
    }


def timms_models() -> dict[str, str]:
    """Networks of timm, with the file that they are in."""
    files = (folder_of("timm") / "models").glob("*.py")
    return {name: f"timm, {path.stem}" for path in files for name in TIMMS_MODEL.findall(path.read_text("utf-8"))}


def models() -> Iterator[Row]:
    """The networks of this package, then timm's."""
    for found in (own_models(), timms_models()):
        yield from sorted(found.items(), key=lambda row: natural(row[0]))


def losses() -> Iterator[Row]:
    """The losses, with the first line of their docstrings."""
    yield from ((name, first_line(node)) for name, node in of_kind("losses").items())


def schemes() -> Iterator[Row]:
    """The schemes, with the first line of their docstrings."""
    yield from ((name, first_line(node)) for name, node in of_kind("schemes").items())


def networks(node: Any) -> Iterator[str]:
    """Names of the networks in a part of a configuration; of one that wraps another, the other's."""
    if not isinstance(node, dict):
        return
    if isinstance(name := node.get("name"), str):
        kwargs = {key: value for key, value in node.get("kwargs", {}).items() if key != "teacher"}
        yield from list(networks(kwargs)) or [name.rpartition(".")[2] if name.startswith("kd_lightning.") else name]
    else:
        for part in node.values():
            yield from networks(part)


def matched(node: Any) -> Iterator[str]:
    """Names of the losses in a part of a configuration."""
    if isinstance(node, dict):
        if loss := node.get("loss"):
            yield (loss["class_path"] if isinstance(loss, dict) else loss).rpartition(".")[2]
        else:
            for part in node.values():
                yield from matched(part)


def said(text: str) -> str:
    """The first sentence of the comment that a configuration begins with, after the command that it is for."""
    comment = takewhile(lambda line: line.startswith("# "), text.splitlines())
    lines = (line.removeprefix("# ") for line in comment)
    return re.split(r"(?<=\.)\s", " ".join(line for line in lines if not line.startswith("kd-lightning ")))[0]


def of_config(text: str) -> tuple[str, str]:
    """Who learns from whom, and what is matched; of a configuration without a model, what its comment says."""
    content = yaml.load(text, yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader)
    if "model" not in content:
        return "", said(text)
    stated = content["model"]["init_args"]
    learners, teacher = networks(stated.get("student") or stated["peers"]), stated.get("teacher")
    teachers = (list(networks(teacher)) or [teacher["class_path"]]) if teacher else []
    who = " <- ".join(", ".join(names) for names in (learners, teachers) if names)
    return who, ", ".join(dict.fromkeys(matched(stated)))


def configurations() -> Iterator[Row]:
    """The configurations of the package, with who learns from whom, and what is matched."""
    yield from ((name, *of_config(path.read_text(encoding="utf-8"))) for name, path in configs().items())


TOPICS: dict[str, Callable[[], Iterator[Row]]] = {
    "models": models,
    "losses": losses,
    "schemes": schemes,
    "configs": configurations,
}


def listed(topic: str, pattern: str = "") -> str:
    """The rows of a topic that a pattern picks; all of them for an empty one.

    Raises:
        ValueError: if there is no such topic, or nothing that the pattern picks.
    """
    if topic not in TOPICS:
        raise ValueError(f"list knows {', '.join(TOPICS)}, got {topic!r}")
    rows = list(TOPICS[topic]())
    wanted = pattern.lower()
    if set("*?[") & set(pattern):
        picked = [row for row in rows if fnmatchcase(row[0].lower(), wanted)]
    else:
        picked = [row for row in rows if wanted in (row[0] if topic == "models" else " ".join(row)).lower()]
    if not picked:
        near = difflib.get_close_matches(pattern, [row[0] for row in rows])
        hint = f": did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"none of the {topic} is {pattern!r}{hint}")
    return aligned(picked)


def answer(arguments: Sequence[str]) -> str:
    """What a command line asks for.

    Raises:
        ValueError: if it is not understood.
    """
    if not 1 <= len(arguments) <= 2:
        raise ValueError(f"list needs one of {', '.join(TOPICS)}, and takes a pattern, got {list(arguments)}")
    return listed(*arguments)
