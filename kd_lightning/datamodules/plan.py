"""The plan of an epoch: which samples, in which order, in which batch, on which rank."""

from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor

from kd_lightning.seeds import hashed

MIN_PER_RANK = 2  # BatchNorm cannot train on a single sample


class EpochPlan:
    """Names the samples of every batch of an epoch as a pure function of (seed, epoch).

    The order is that of the *global* batch, so it does not depend on the number of ranks: rank ``r`` of ``w`` takes
    ``global_batch[r::w]``. Every rank has the same number of batches; in evaluation nothing is padded, so the last
    batch may be smaller, or empty, on some ranks.

    Args:
        rows: Row numbers of the samples in the full set, int64 ``[M]``.
        global_batch_size: Samples per optimizer step over all ranks.
        seed: Seed of the order.
        train: Shuffle, and drop a last batch that leaves a rank fewer than 2 samples.
        repeats: Repeated augmentation: each sample of an epoch comes ``repeats`` times, in views of their own, and the
            epoch shows ``ceil(M / repeats)`` different samples, the last one less often where ``repeats`` does not
            divide M (Hoffer et al., "Augment your batch", 2020; DeiT).
        drop_last: Drop a last batch that is smaller than the others.
        rank: This process, 0 <= rank < world.
        world: Number of processes.

    Raises:
        ValueError: if the batch cannot be split over the ranks, or nothing is left to train on.
    """

    def __init__(
        self,
        rows: Tensor,
        global_batch_size: int,
        *,
        seed: int,
        train: bool,
        repeats: int = 1,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if global_batch_size < 1:
            raise ValueError(f"global_batch_size must be >= 1, got {global_batch_size}")
        if repeats < 1:
            raise ValueError(f"repeats must be >= 1, got {repeats}")
        if train and global_batch_size % world:
            raise ValueError(
                f"global_batch_size {global_batch_size} cannot be split over {world} devices: "
                f"use a multiple of {world}, or a number of devices that divides it"
            )
        if not len(rows):
            raise ValueError(f"the {'training' if train else 'evaluation'} set is empty")
        self.rows, self.global_batch_size, self.seed, self.train = rows, global_batch_size, seed, train
        self.repeats, self.rank, self.world = repeats, rank, world
        self.epoch = 0
        self._period: int | None = None
        self._views: int | None = None
        self._groups: tuple[Tensor, int] | None = None
        full, rest = divmod(len(rows), global_batch_size)
        kept = rest > 0 and not (drop_last or (train and rest < MIN_PER_RANK * world))
        self.dropped = 0 if kept else rest
        self.batches = full + kept
        if not self.batches:
            raise ValueError(
                f"the training set has {len(rows)} samples, fewer than one batch of {global_batch_size}: "
                "lower data.global_batch_size, or set data.drop_last to false"
            )

    def start_over_every(self, epochs: int) -> None:
        """Describe epoch 0 again after so many, >= 1: a generation sees what a training of its own would see."""
        self._period = epochs

    def repeat_views_after(self, epochs: int) -> None:
        """Show the views of the first so many epochs, >= 1, again and again; the order goes on changing."""
        self._views = epochs

    def shuffle_within(self, groups: Tensor, window: int) -> None:
        """Take whole groups of samples, such as those in one file, in a random order, and shuffle so many at a time.

        Args:
            groups: Number of the group of each of ``rows``, int64 ``[M]``, >= 0.
            window: Groups whose samples are shuffled together, >= 1.
        """
        self._groups = groups, window

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the plan describes next, counted from the start of the training."""
        self.epoch = epoch if self._period is None else epoch % self._period

    @property
    def sampler(self) -> Self:
        """Itself: what Lightning calls ``set_epoch`` on."""
        return self

    def __len__(self) -> int:
        return self.batches

    def order(self) -> tuple[Tensor, Tensor]:
        """Row and view number of each sample of the epoch over all ranks, two int64 ``[M]``."""
        if not self.train:
            return self.rows, torch.zeros_like(self.rows)
        keys = hashed(self.seed, "order", self.epoch, self.rows)
        keys = keys + (self._window() << 32)
        order = self.rows[torch.sort(keys, stable=True).indices]
        shown = self.epoch if self._views is None else self.epoch % self._views
        if self.repeats == 1:
            return order, torch.full_like(order, shown)
        size = len(order)
        repeated = order.repeat_interleave(self.repeats)[:size]
        return repeated, shown * self.repeats + torch.arange(size) % self.repeats

    def _window(self) -> Tensor:
        """Number of the window of each of ``rows`` in this epoch, int64 ``[M]`` or ``[]``."""
        if self._groups is None:
            return torch.zeros((), dtype=torch.int64)
        groups, window = self._groups
        numbers = torch.arange(int(groups.max()) + 1)
        order = torch.sort(hashed(self.seed, "groups", self.epoch, numbers), stable=True).indices
        return (torch.argsort(order) // window)[groups]

    def samples_at(self, position: int) -> int:
        """Samples of the batch at a position over all ranks: only the last one may be smaller than the others."""
        return min(self.global_batch_size, len(self.rows) - position * self.global_batch_size)

    def batches_from(self, position: int, device: torch.device | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's (rows, numbers) of each batch from ``position`` on, cut out of an order that lies on the device.

        Args:
            position: Of the first batch, >= 0.
            device: Where they are wanted, by default on the CPU; the whole order goes there once.
        """
        rows, numbers = (names.to(device or "cpu") for names in self.order())
        for start in range(
            position * self.global_batch_size, self.batches * self.global_batch_size, self.global_batch_size
        ):
            part = slice(start + self.rank, min(start + self.global_batch_size, len(rows)), self.world)
            yield rows[part], numbers[part]
