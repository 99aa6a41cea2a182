"""What a run did, read from its configuration: the criteria as formulas, and who taught."""

from collections.abc import Iterator, Mapping
from typing import Any


def _named(value: Any) -> str:
    """A class with its arguments as ``Name(argument=value, ...)``; anything else as it is."""
    if isinstance(value, Mapping) and "class_path" in value:
        arguments = ", ".join(f"{key}={_named(each)}" for key, each in (value.get("init_args") or {}).items())
        return f"{value['class_path'].rpartition('.')[2]}({arguments})"
    return str(value)


def formula(criteria: Mapping[str, Any]) -> str:
    """The weighted sum that criteria are, as ``0.1 CrossEntropy(...) + 0.9 SoftTarget(temperature=4.0)``.

    Args:
        criteria: Name -> term, as a configuration has them.
    """
    terms = []
    for term in criteria.values():
        tap = "" if term.get("student", "default") == "default" else f" at {term['student']}"
        terms.append(f"{_named(term.get('weight', 1.0))} {_named(term['loss'])}{tap}")
    return " + ".join(terms)


def _is_criteria(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(term, Mapping) and "loss" in term for term in value.values())
    )


def formulas(init_args: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, str]]:
    """Place in a configuration's ``model`` -> formula, of all criteria that there are; nothing for labels alone."""
    for key, value in init_args.items():
        if _is_criteria(value):
            yield f"{where}{key}", formula(value)
        elif isinstance(value, Mapping):
            yield from formulas(value, f"{where}{key}.")


def networks(tree: Any) -> Iterator[str]:
    """Names of the networks that recipes in a part of a configuration state."""
    if isinstance(tree, Mapping):
        if "name" in tree and "weights" in tree:
            yield str(tree["name"])
        for value in tree.values():
            yield from networks(value)
