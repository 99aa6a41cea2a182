"""The loader: an iterable over the batches of an epoch that can be left and taken up again at any batch."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch

from kd_lightning.batch import Batch
from kd_lightning.datamodules.plan import EpochPlan


class Loader(ABC):
    """Yields the `Batch`es of this rank, on its device, with views made, mixed and normalised.

    It is a plain iterable as Lightning takes it: it shards itself (see `EpochPlan`), its ``batch_sampler.sampler`` has
    ``set_epoch``, and its state is the epoch and the position in it. Iteration is lazy, because Lightning calls
    ``iter()`` before ``set_epoch``.

    Args:
        plan: Which samples come in which batch.
        device: Where the batches are wanted.
    """

    def __init__(self, plan: EpochPlan, device: torch.device) -> None:
        self.plan, self.device = plan, device
        self.position = 0
        self._resume: tuple[int, int] | None = None

    @property
    def batch_sampler(self) -> EpochPlan:
        """Where Lightning looks for a ``sampler`` to call ``set_epoch`` on."""
        return self.plan

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        resume, self._resume = self._resume, None
        self.position = 0
        if resume is not None and resume[0] == self.plan.epoch and resume[1] < len(self):
            self.position = resume[1]
        for batch in self.fetch(self.position):
            self.position += 1
            yield batch

    def global_batch(self, position: int) -> int:
        """Samples over all ranks of the batch at a position of the epoch."""
        return self.plan.samples_at(position)

    @abstractmethod
    def fetch(self, position: int) -> Iterator[Batch]:
        """The batches of the plan's epoch from ``position`` on."""

    def state_dict(self) -> dict[str, int]:
        """Where the iteration stands: epoch, and number of batches that have been given out.

        Before the first batch after a restart, it is still what was loaded.
        """
        epoch, position = self._resume or (self.plan.epoch, self.position)
        return {"epoch": epoch, "position": position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration of that epoch start where it stood; a finished epoch starts anew."""
        self._resume = (state["epoch"], state["position"])
