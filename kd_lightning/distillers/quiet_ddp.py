"""DDP in which a training step exchanges gradients alone."""

from datetime import timedelta
from typing import Any, cast

from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.constants import default_pg_timeout
from torch.nn.modules.batchnorm import _BatchNorm

from kd_lightning.distillers.first_ranks_statistics import FirstRanksStatistics


class QuietDDP(FirstRanksStatistics, DDPStrategy):
    """DDP in which a step exchanges gradients alone, if no module has other buffers than BatchNorm's statistics.

    Lightning's shows the first rank's buffers to all others before every forward pass. A BatchNorm that trains does not
    read its running statistics, so the first rank's, and all that is learnt, are the same without. Other buffers may be
    read in training, so where there are any it does as Lightning does. Not for a scheme in which a network in
    evaluation mode follows the student.

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
            **{"gradient_as_bucket_view": True, "static_graph": static_graph} | options,
        )

    def configure_ddp(self) -> None:
        """Wrap the module."""
        self._ddp_kwargs.setdefault("broadcast_buffers", has_buffers_to_read(cast(nn.Module, self.model)))
        super().configure_ddp()


def has_buffers_to_read(module: nn.Module) -> bool:
    """Whether any part but BatchNorm has buffers, which a training step may read."""
    parts = [part for part in module.modules() if not isinstance(part, _BatchNorm)]
    return any(True for part in parts for _ in part.buffers(recurse=False))
