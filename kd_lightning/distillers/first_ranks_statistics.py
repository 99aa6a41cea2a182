"""Buffers that are each rank's own in training, and the first rank's wherever they count."""

from datetime import timedelta
from typing import Any, cast

from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import nn
from torch.distributed.constants import default_pg_timeout

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


class QuietDDP(FirstRanksStatistics, DDPStrategy):
    """DDP in which the ranks exchange nothing but gradients in a step.

    Lightning's shows the first rank's buffers to all others before every forward pass. A BatchNorm that trains does not
    read its running statistics, so the first rank's, and all that is learnt, are the same without. Not for a scheme in
    which a network in evaluation mode follows the student, nor for a student that reads its buffers in training.

    Args:
        static_graph: Whether every step reaches the same parameters.
        process_group_backend: ``gloo``, ``nccl``, ...; None for what suits the devices.
        timeout: Of a collective operation.
        options: Others of torch's ``DistributedDataParallel``.
    """

    def __init__(
        self,
        static_graph: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta = default_pg_timeout,
        **options: Any,
    ) -> None:
        super().__init__(
            process_group_backend=process_group_backend,
            timeout=timeout,
            **{"gradient_as_bucket_view": True, "static_graph": static_graph, "broadcast_buffers": False} | options,
        )
