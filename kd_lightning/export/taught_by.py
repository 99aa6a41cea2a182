"""Who taught, read from a run's configuration."""

from collections.abc import Iterator, Mapping
from typing import Any

from kd_lightning.export.stated import placeless


def networks(tree: Any) -> Iterator[str]:
    """Names of the networks that recipes in a part of a configuration state."""
    if isinstance(tree, Mapping):
        if "name" in tree and "weights" in tree:
            yield placeless(str(tree["name"]))
        for value in tree.values():
            yield from networks(value)
