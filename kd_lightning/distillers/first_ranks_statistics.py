"""Buffers that are each rank's own in training, and the first rank's wherever they count."""

from typing import cast

from lightning.pytorch.strategies import Strategy
from torch import nn

from kd_lightning.ranks import same_on_all_ranks


class FirstRanksStatistics(Strategy):
    """Evaluation goes by the first rank's buffers, as checkpoints do; said once, before each evaluation."""

    def on_validation_start(self) -> None:
        """Every rank goes by the statistics of the first one."""
        self._same_buffers()

    def on_test_start(self) -> None:
        """Every rank goes by the statistics of the first one."""
        self._same_buffers()

    def on_predict_start(self) -> None:
        """Every rank goes by the statistics of the first one."""
        self._same_buffers()

    def _same_buffers(self) -> None:
        same_on_all_ranks(list(cast(nn.Module, self.model).buffers()))
