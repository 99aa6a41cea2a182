"""Where randomness comes from: every random number of a run is a function of a name, never of history.

A sample's view is named by ``(seed, view name, index, number)``, what happens inside a step by
``(seed, epoch, batch, rank)``, an initialisation by ``(seed, role)``. So a resumed, re-sharded or re-ordered run
draws what an uninterrupted one would have drawn, and no generator state has to be stored.
"""

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MASK = 0xFFFFFFFF
GOLDEN = 0x9E3779B1
Lane = TypeVar("Lane", int, Tensor, NDArray[Any])
Lanes = TypeVar("Lanes", Tensor, NDArray[Any])


def run_seed() -> int:
    """The seed of this run: what ``seed_everything`` was last told, else torch's initial seed."""
    return int(os.environ.get("PL_GLOBAL_SEED", torch.initial_seed())) & MASK


def lowbias32(x: Lane) -> Lane:
    """A bijective 32-bit hash with low bias, of an integer in [0, 2^32), or of each in int64 or uint32 lanes.

    Source: C. Wellons, "Prospecting for Hash Functions", 2018 (``lowbias32``).
    """
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & MASK
    return x ^ (x >> 16)


def hashed(*names: int | str | Tensor) -> Tensor:
    """One 32-bit hash per element of the names, which are broadcast against each other.

    Args:
        names: Integers, strings (by their CRC-32), or int64 tensors.

    Returns:
        int64 tensor with values in [0, 2^32), on the device of the tensors among the names.
    """
    first = next((place for place, name in enumerate(names) if isinstance(name, Tensor)), len(names))
    plain = hashed_int(*(name for name in names[:first] if not isinstance(name, Tensor)))
    if first == len(names):
        return torch.tensor(plain)
    # A plain number among tensors is no tensor itself: to copy it to a GPU, the host would wait.
    lanes = [name if isinstance(name, Tensor) else hashable(name) for name in names[first:]]
    if all(lane.is_cpu and lane.ndim for lane in lanes if isinstance(lane, Tensor)):
        parts = [lane.numpy().astype(np.uint32) if isinstance(lane, Tensor) else lane for lane in lanes]
        return torch.from_numpy(folded(plain, parts).astype(np.int64))
    return folded(plain, lanes)


def folded(start: int, lanes: Sequence[int | Lanes]) -> Lanes:
    """The hash of lanes, of which the first is no plain number, after names that have the hash ``start``."""
    h = lowbias32((cast(Lanes, lanes[0]) + ((start * GOLDEN + 1) & MASK)) & MASK)
    for lane in lanes[1:]:
        h = lowbias32((h * GOLDEN + ((lane + 1) & MASK if isinstance(lane, int) else lane + 1)) & MASK)
    return h


def hashable(name: int | str) -> int:
    """The number that a plain name stands for: of a string its CRC-32."""
    return zlib.crc32(name.encode()) if isinstance(name, str) else name


def hashed_int(*names: int | str) -> int:
    """The number that `hashed` gives for plain names, 50 times as fast."""
    h = 0
    for name in names:
        h = lowbias32((h * GOLDEN + hashable(name) + 1) & MASK)
    return h


def seed_torch(seed: int) -> None:
    """Seed torch's generators of every device that is in use, as ``torch.manual_seed`` does.

    That one costs 0.8 ms where a kind of device is not in use yet: it keeps a stack trace for later.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def uniform(*names: int | str | Tensor) -> Tensor:
    """Numbers in [0, 1), float32, one per element of the names (see `hashed`); 24 bits each."""
    return (hashed(*names) >> 8).to(torch.float32) * 2.0**-24


def below(bound: int, *names: int | str | Tensor) -> Tensor:
    """Integers in [0, bound), int64, one per element of the names (see `hashed`).

    Raises:
        ValueError: if ``bound`` is not in 1 … 2^24 (the bias grows with it).
    """
    if not 1 <= bound <= 1 << 24:
        raise ValueError(f"bound must be in 1 … 2^24, got {bound}")
    return (hashed(*names) * bound) >> 32


@contextmanager
def seeded(*names: int | str) -> Iterator[int]:
    """Inside, torch's generators are seeded by the names; outside, they are as they were."""
    seed = int(hashed(*names))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield seed
