"""What a configuration may import: a YAML file is data, and does not get to run code that nobody allowed."""

import difflib
import importlib
from collections.abc import Iterable

BUILT_IN = frozenset(
    {
        "kd_lightning",
        "lightning",
        "lightning_utilities",
        "pytorch_lightning",
        "timm",
        "torch",
        "torchmetrics",
        "torchvision",
    }
)
ALLOWED: set[str] = set(BUILT_IN)


def allow(modules: Iterable[str]) -> None:
    """Let configurations name classes of further top-level modules, and of what lies under them."""
    ALLOWED.update(modules)


def imported(path: str) -> object:
    """The object at a dotted path, if its module is allowed.

    Raises:
        ValueError: if the module is not allowed, or there is nothing at the path.
    """
    module, _, name = path.rpartition(".")
    if not any(module == root or module.startswith(f"{root}.") for root in ALLOWED):
        raise ValueError(f"{path!r} may not be imported: if you trust it, allow it with --allow {path.split('.')[0]}")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{path!r} cannot be imported: {error}") from error
    if name not in vars(found):
        near = difflib.get_close_matches(name, vars(found), n=3)
        raise ValueError(f"{module} has no {name!r}" + (f", did you mean {' or '.join(near)}?" if near else ""))
    found_object: object = vars(found)[name]
    return found_object
