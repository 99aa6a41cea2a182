"""What the end-to-end tests of exact resume share."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import lightning.pytorch as pl
import pytest
import torch

AtStep = Callable[[int, Callable[[], None]], None]
GoneAt = Callable[[int], AbstractContextManager[None]]


class Interrupted(Exception):
    """A run that is gone, without a word to anybody."""


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> AtStep:
    """Let something happen at the end of a step, once."""

    def at(step: int, what: Callable[[], None]) -> None:
        begin = pl.LightningModule.on_before_zero_grad

        def begun(self: pl.LightningModule, optimizer: torch.optim.Optimizer) -> None:
            if self.global_step == step:
                monkeypatch.setattr(pl.LightningModule, "on_before_zero_grad", begin)
                what()

        monkeypatch.setattr(pl.LightningModule, "on_before_zero_grad", begun)

    return at


@pytest.fixture
def gone_at(at_step: AtStep) -> GoneAt:
    """Inside, a run must be gone at the end of a step, once; what comes after runs through."""

    def leave() -> None:
        raise Interrupted

    @contextmanager
    def gone(step: int) -> Iterator[None]:
        at_step(step, leave)
        with pytest.raises(Interrupted):
            yield

    return gone
