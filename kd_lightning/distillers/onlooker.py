"""Onlookers: callbacks that are shown what is answered in a test."""

from abc import ABC, abstractmethod
from typing import Any

import lightning.pytorch as pl

from kd_lightning.distillers.evaluating import Answers


class Onlooker(pl.Callback, ABC):
    """Is shown the answers to each batch of a test; a module that is no `Distiller` shows none."""

    @abstractmethod
    def note(self, answers: Answers) -> None:
        """Take in the answers to a batch, which are on the device."""

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Pass on what the step of the test returned."""
        if isinstance(outputs, Answers):
            self.note(outputs)
