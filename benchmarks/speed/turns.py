"""One contender at a time: each waits for its turn, does one epoch, and says how long it took."""

import functools
import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

GO = "go"
Epoch = Callable[[int], Iterator[int]]  # number of the epoch -> images of each of its steps


def clock() -> float:
    """Seconds, when all that was asked of the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes() -> dict[str, int]:
    """The most memory that this process has held, of the host (without loader workers) and of the device."""
    status = Path("/proc/self/status")
    if status.is_file():  # elsewhere the figure may be that of the process that started this one
        found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(encoding="utf-8"), re.MULTILINE)
        held = {"peak_bytes": 1024 * int(found[1]) if found else 0}
    else:
        held = {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    if torch.cuda.is_available():
        held["device_peak_bytes"] = torch.cuda.max_memory_allocated()
    return held


class Turns:
    """The contender's end of the line: turns come by its standard input, answers go out by its standard output.

    What others print goes to the standard error from now on.
    """

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._started = False

    def wait(self) -> None:
        """Until it is this contender's turn.

        Raises:
            SystemExit: if there are no more turns.
        """
        if sys.stdin.readline().strip() != GO:
            raise SystemExit(0)

    def say(self, **facts: Any) -> None:
        """Answer something."""
        self._answers.write(json.dumps(facts) + "\n")

    def stepped(self) -> None:
        """A step is done; the first one ends the start-up."""
        if not self._started:
            clock()
            self._started = True
            self.say(first_step=time.time())

    def done(self, seconds: float, images: int, steps: int) -> None:
        """The epoch is done."""
        self.say(seconds=seconds, images=images, steps=steps, **peak_bytes())

    def serve(self, epoch: Epoch) -> None:
        """Do one epoch at each turn."""
        number = 0
        while True:
            self.wait()
            images, steps, start = 0, 0, clock()
            for count in epoch(number):
                images += count
                steps += 1
                self.stepped()
            self.done(clock() - start, images, steps)
            number += 1


@functools.cache
def turns() -> Turns:
    """This process's."""
    return Turns()


def quickest(make: Callable[[int], Epoch], numbers: list[int], steps: int = 20) -> int:
    """Of some numbers of loader workers, the one with which an epoch's first steps, after 3, take the least time."""
    times = {}
    for number in numbers:
        running = make(number)(0)
        for _, _ in zip(range(3), running, strict=False):
            turns().stepped()
        start = clock()
        taken = sum(1 for _ in zip(range(steps), running, strict=False))
        times[number] = (clock() - start) / max(1, taken)
    return min(times, key=times.__getitem__)


def serve_quickest(make: Callable[[int], Epoch], workers: list[int]) -> None:
    """Choose the number of loader workers, say it, and do one epoch at each turn."""
    best = quickest(make, workers) if len(workers) > 1 else workers[0]
    turns().say(note=f"{best} workers, the quicker of {' and '.join(map(str, workers))}")
    turns().serve(make(best))
