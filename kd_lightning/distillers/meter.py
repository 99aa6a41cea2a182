"""The meter: means of the terms between two log entries, kept on the device and read only when logged."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor


class TermMeter:
    """Sums of named values and of the samples behind them, in one float64 tensor.

    Args:
        names: All values that may come; a value that did not come since the last reading is not in the next one.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.sums: Tensor | None = None

    def add(self, values: Mapping[str, Tensor], samples: int) -> None:
        """Take in means over ``samples`` samples; no host sees them yet."""
        device = next(iter(values.values())).device
        if self.sums is None:
            self.sums = torch.zeros(2, len(self.names), dtype=torch.float64)
        if self.sums.device != device:
            self.sums = self.sums.to(device)
        came = torch.tensor([float(name in values) for name in self.names], dtype=torch.float64)
        zero = torch.zeros((), device=device)
        now = torch.stack([values.get(name, zero).detach().to(torch.float64) for name in self.names])
        self.sums += samples * torch.stack([now, came.to(device)])

    def read(self, over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The means since the last reading; ``over_ranks`` sums a tensor over the processes."""
        if self.sums is None:
            return {}
        sums, counts = over_ranks(self.sums).tolist()
        self.sums = None
        return {name: s / n for name, s, n in zip(self.names, sums, counts, strict=True) if n > 0}

    def state(self, over_ranks: Callable[[Tensor], Tensor]) -> Tensor | None:
        """What a checkpoint keeps: the sums over all ranks."""
        return None if self.sums is None else over_ranks(self.sums.clone()).cpu()

    def restore(self, state: Tensor | None, rank: int) -> None:
        """Take up a state; the first rank holds what all have summed."""
        self.sums = state if rank == 0 or state is None else torch.zeros_like(state)
