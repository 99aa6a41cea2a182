"""Rows of all ranks, for losses that remember or count over the whole batch."""

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gathered(rows: Tensor) -> Tensor:
    """The rows ``[N, ...]`` of all ranks, in the order of the ranks, whose N may differ; without gradient.

    Every rank must call it. On one rank, the rows themselves.
    """
    rows = rows.detach()
    if not is_distributed():
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    longest = max(int(count) for count in counts)
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])


def summed(values: Tensor) -> Tensor:
    """The sum over all ranks, without gradient; on one rank, the values themselves."""
    values = values.detach().clone()
    if is_distributed():
        dist.all_reduce(values)
    return values
