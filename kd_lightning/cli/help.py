"""``kd-lightning fit --help TOPIC``: one part of a configuration at a time, told without importing torch."""

import ast
import difflib
import re
import textwrap
from collections.abc import Callable, Iterable

from kd_lightning.cli.listing import aligned, listed
from kd_lightning.cli.sources import (
    PACKAGE,
    arguments,
    classes,
    descends,
    exported,
    first_line,
    folder_of,
    of_kind,
    parsed,
)
from kd_lightning.cli.usage import CHECKPOINTS, DATA, LOGGER, MODEL, MORE, OPTIMIZER, SCHEDULE, TEACHER, TRAINER, usage

ROOMS = ("distillers", "models", "losses", "datamodules", "callbacks")
ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")  # of Sphinx, in Lightning's docstrings
SENTENCE = re.compile(r"(?<=[\w)'`]\.) (?=[A-Z`])")
WIDTH = 120


def plain(text: str) -> str:
    """A docstring's text without its markup."""
    return ROLE.sub(r"\1", text).replace("``", "")


def filled(text: str, margin: int) -> str:
    """A text in lines of a screen, at so many spaces from the left."""
    indent = " " * margin
    return textwrap.fill(plain(text), WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def as_yaml(default: str) -> str:
    """A default as a configuration states it."""
    return {"None": "null", "True": "true", "False": "false"}.get(default, default)


def overview(nodes: Iterable[ast.ClassDef]) -> str:
    """What each class is, and the names of its arguments."""
    lines: list[str] = []
    for node in nodes:
        names = ", ".join(argument.name for argument in arguments(node))
        lines += [f"  {node.name}", filled(first_line(node), 6), filled(f"({names})", 6)]
    return "\n".join(lines) + "\n"


def defaults(node: ast.ClassDef) -> str:
    """The arguments of a class, with their defaults and the first sentence of what is said of each."""
    found = arguments(node)
    names = [f"  {each.name}" if each.default is None else f"  {each.name} = {as_yaml(each.default)}" for each in found]
    column = max(map(len, names)) + 2
    texts = [filled(SENTENCE.split(each.meaning)[0], column) for each in found]
    return "".join(f"{name:{column}}{text[column:]}\n" for name, text in zip(names, texts, strict=True))


def about(node: ast.ClassDef) -> str:
    """What a class is, and all that is said of its arguments."""
    said = parsed(ast.get_docstring(node) or "")
    parts = [f"{node.name}: {plain(said.short_description or '')}"]
    if said.long_description:
        parts.append(plain(said.long_description))
    for each in arguments(node):
        kind = f": {each.kind}" if each.kind else ""
        default = f" = {as_yaml(each.default)}" if each.default else ", needed" if kind else ""
        parts.append(f"  {each.name}{kind}{default}\n{filled(each.meaning, 6)}")
    return "\n\n".join(parts) + "\n"


def public() -> dict[str, ast.ClassDef]:
    """Every class that a room exports, by name."""
    found: dict[str, ast.ClassDef] = {}
    for room in ROOMS:
        known = classes(PACKAGE / room)
        found |= {name: known[name] for name in exported(PACKAGE / room) if name in known}
    return found


def trainer() -> str:
    """The arguments of Lightning's Trainer."""
    node = classes(folder_of("lightning") / "pytorch/trainer")["Trainer"]
    return f"{TRAINER}\n{defaults(node)}"


def model() -> str:
    """The schemes and the teachers."""
    schemes, teachers = of_kind("schemes").values(), of_kind("teachers").values()
    return f"{MODEL}\n{overview(schemes)}\n{TEACHER}\n{overview(teachers)}\n{MORE.format('OfflineDistiller')}"


def data() -> str:
    """The data modules."""
    return f"{DATA}\n{overview(of_kind('data modules').values())}\n{MORE.format('DigitsDataModule')}"


def optimizer() -> str:
    """The optimizers of torch, with their arguments, and schedules of the learning rate."""
    folder = folder_of("torch") / "optim"
    known = classes(folder)
    of_torch = {name: known[name] for name in exported(folder) if name in known}
    rows = [
        (f"torch.optim.{name}", ", ".join(each.name for each in arguments(node)[1:]))  # but the parameters
        for name, node in of_torch.items()
        if descends(node, "Optimizer", known)
    ]
    schedules = [node for node in public().values() if descends(node, "LRScheduler", known)]
    return f"{OPTIMIZER}\n{aligned(rows, '  ')}\n{SCHEDULE}\n{overview(schedules)}"


def checkpoints() -> str:
    """Which checkpoints are kept."""
    return f"{CHECKPOINTS}\n{defaults(public()['Checkpoints'])}"


def logger() -> str:
    """The trackers for which there is an overlay."""
    return f"{LOGGER}\n{listed('configs', 'logger/*')}"


TOPICS: dict[str, Callable[[], str]] = {
    "trainer": trainer,
    "model": model,
    "data": data,
    "optimizer": optimizer,
    "checkpoints": checkpoints,
    "logger": logger,
}


def answer(command: str, topic: str | None) -> str:
    """What ``kd-lightning COMMAND --help TOPIC`` tells: of a topic, or of a class of the package.

    Raises:
        ValueError: if there is neither.
    """
    if topic is None:
        return usage(command)
    if topic in TOPICS:
        return TOPICS[topic]()
    found = public()
    name = topic.rpartition(".")[2] if topic.startswith("kd_lightning.") else topic
    if name in found:
        return about(found[name])
    near = difflib.get_close_matches(topic, [*TOPICS, *found])
    hint = f", did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(f"--help takes {', '.join(TOPICS)}, all, or a class of this package, got {topic!r}{hint}")
