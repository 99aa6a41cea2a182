"""What a run states, without the places of files on its machine."""

from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from kd_lightning.models.network import LOCAL, PRETRAINED

TOLD = ("seed_everything", "trainer", "model", "data", "checkpoints")  # parts of a configuration
PLACES = frozenset({"root", "path", "logger", "default_root_dir"})


def placeless(value: str) -> str:
    """A name without the folders in front of it, where it says that it is one of a local folder."""
    return f"{LOCAL}{last_part(value.removeprefix(LOCAL))}" if value.startswith(LOCAL) else value


def last_part(path: str) -> str:
    """The name of a file or folder, of either kind of path."""
    return PureWindowsPath(path).name


def is_place(key: str, value: Any) -> bool:
    """Whether an entry says where something lies: by its key, or because it is an absolute path."""
    if key == "weights":
        return isinstance(value, str) and value != PRETRAINED
    if not isinstance(value, str) or key == "recipe":
        return key in PLACES
    absolute = PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()
    return key in PLACES or absolute or value.startswith("~")


def _without_places(tree: Any, key: str = "") -> Any:
    if isinstance(tree, Mapping):
        return {name: _without_places(each, name) for name, each in tree.items() if not is_place(name, each)}
    if isinstance(tree, list | tuple):
        return [_without_places(each) for each in tree if not is_place("", each)]
    if isinstance(tree, str):
        return last_part(tree) if key == "recipe" else placeless(tree)
    return tree


def stated(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says of training, model and data; the trainer's entries that are null are left out.

    Left out are also the weights that a network started from, unless they are timm's or a recipe's, of which the file's
    name is kept; where data lie; loggers; and every absolute path.

    Args:
        config: Of a run's ``config.yaml``.
    """
    told = {part: _without_places(config[part]) for part in TOLD if config.get(part) is not None}
    if "trainer" in told:
        told["trainer"] = {key: value for key, value in told["trainer"].items() if value is not None}
    return told
