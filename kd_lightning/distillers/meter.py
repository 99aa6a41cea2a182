"""The meter: means of the terms between two log entries, kept on the device and read only when logged."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor


def due(steps: int, every: int) -> bool:
    """Whether what happens every so many steps is due after so many; every 0 steps means never, as in Lightning."""
    return every > 0 and steps % every == 0


class TermMeter:
    """Sums of named values, float64, and the samples behind them.

    Args:
        names: All values that may come; a value that did not come since the last reading is not in the next one.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        self._sums: dict[tuple[str, ...], Tensor] = {}  # values that come together are summed together
        self._samples: dict[str, float] = {}
        self._restored: dict[str, float] = {}

    def add(self, values: Mapping[str, Tensor], samples: int) -> None:
        """Take in means over ``samples`` samples; no host sees them yet."""
        key = tuple(values)
        now = torch.stack([value.detach() for value in values.values()])
        if key not in self._sums:
            self._sums[key] = torch.zeros(len(key), dtype=torch.float64, device=now.device)
            if any(name in self._restored for name in key):
                # So that a resumed sum is rounded as one that was not interrupted.
                start = [self._restored.pop(name, 0.0) for name in key]
                self._sums[key] += torch.tensor(start, dtype=torch.float64, device=now.device)
        self._sums[key].add_(now, alpha=samples)
        for name in key:
            self._samples[name] = self._samples.get(name, 0.0) + samples

    @property
    def sums(self) -> Tensor | None:
        """Sums and samples by name, float64 ``[2, names]``, on the CPU; None if nothing came."""
        if not self._samples:
            return None
        sums = dict(self._restored)
        for key, part in self._sums.items():
            for name, value in zip(key, part.tolist(), strict=True):
                sums[name] = sums.get(name, 0.0) + value
        rows = [[found.get(name, 0.0) for name in self.names] for found in (sums, self._samples)]
        return torch.tensor(rows, dtype=torch.float64)

    def read(self, over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The means since the last reading; ``over_ranks`` sums a tensor over the processes."""
        if (both := self.sums) is None:
            return {}
        sums, counts = over_ranks(both).tolist()
        self.clear()
        return {name: s / n for name, s, n in zip(self.names, sums, counts, strict=True) if n > 0}

    def state(self, over_ranks: Callable[[Tensor], Tensor]) -> Tensor | None:
        """What a checkpoint keeps: the sums over all ranks."""
        return None if (both := self.sums) is None else over_ranks(both).cpu()

    def restore(self, state: Tensor | None, rank: int) -> None:
        """Take up a state; the first rank holds what all have summed."""
        self.clear()
        if state is not None:
            sums, samples = (state if rank == 0 else torch.zeros_like(state)).tolist()
            self._samples = dict(zip(self.names, samples, strict=True))
            self._restored = dict(zip(self.names, sums, strict=True))
