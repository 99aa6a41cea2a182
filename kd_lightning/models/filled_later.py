"""Networks that a state dict fills later: they are built without the weights that their recipes state."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_later: ContextVar[bool] = ContextVar("filled_later", default=False)


@contextmanager
def filled_later() -> Iterator[None]:
    """Inside, recipes are built without their weights, so no file is needed and nothing is fetched or trained for them.

    It is for a network whose state dict is loaded next, strictly, and for a teacher that nobody asks.
    """
    token = _later.set(True)
    try:
        yield
    finally:
        _later.reset(token)


def is_filled_later() -> bool:
    """Whether what is built now is filled later."""
    return _later.get()
