"""What the end-to-end tests of exact resume share."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import lightning.pytorch as pl
import pytest
import torch


class Interrupted(Exception):
    """A run that is gone, without a word to anybody."""


@pytest.fixture
def gone_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """Inside, a run must be gone at the end of a step, once; what comes after runs through."""

    @contextmanager
    def gone(step: int) -> Iterator[None]:
        begin = pl.LightningModule.on_before_zero_grad

        def begun(self: pl.LightningModule, optimizer: torch.optim.Optimizer) -> None:
            if self.global_step == step:
                monkeypatch.setattr(pl.LightningModule, "on_before_zero_grad", begin)
                raise Interrupted

        monkeypatch.setattr(pl.LightningModule, "on_before_zero_grad", begun)
        with pytest.raises(Interrupted):
            yield

    return gone
