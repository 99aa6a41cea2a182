"""What the ranks of a run hold together: their number, their rows, their sums, and what is the first one's."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_distributed() -> bool:
    """Whether this process is one of several ranks."""
    return world_size() > 1


def gathered(rows: Tensor) -> Tensor:
    """The rows ``[N, ...]`` of all ranks, in the order of the ranks, whose N may differ; without gradient.

    Every rank must call it. On one rank, the rows themselves.
    """
    rows = rows.detach()
    if not is_distributed():
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
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


def same_on_all_ranks(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by those of the first rank, in one message for each dtype."""
    if not is_distributed():
        return
    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):  # all ranks in one order
        ours = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.flatten() for tensor in ours])
        dist.broadcast(flat, 0)
        for tensor, part in zip(ours, torch.split(flat, [tensor.numel() for tensor in ours]), strict=True):
            tensor.copy_(part.view_as(tensor))
