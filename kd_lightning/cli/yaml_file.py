"""YAML files that mean what they say: a key that is stated twice, or a number that is none, is an error."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from kd_lightning.packaged import found

NOT_FINITE = {f"{sign}.{name}" for sign in ("", "+", "-") for name in ("inf", "Inf", "INF")} | {".nan", ".NaN", ".NAN"}


def _faults(node: yaml.Node) -> Iterator[tuple[yaml.Mark, str]]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.start_mark, f"the key {key.value!r} is stated twice"
            seen.add(key.value)
            yield from _faults(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _faults(value)
    elif isinstance(node, yaml.ScalarNode) and node.value in NOT_FINITE and not node.style:
        yield node.start_mark, f"{node.value} is not a finite number"


def check_yaml(name: str | Path) -> Path:
    """The file of a configuration, given by path or by name, if a reader and a parser understand it alike.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: with file and line, if it is no YAML, states a key twice, or holds a number that is not finite.
    """
    path = found(name)
    try:
        root = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{path} must hold keys and values at its top")
    for mark, fault in _faults(root):
        raise ValueError(f"{path}, line {mark.line + 1}, column {mark.column + 1}: {fault}")
    return path
