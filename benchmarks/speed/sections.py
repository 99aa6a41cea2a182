"""The sections of the benchmark; a ratio is between two contenders of one section, whose turns alternate."""

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.speed import ours
from benchmarks.speed.images import one_by_one, write_cifar, write_noise
from benchmarks.speed.machine import cores
from benchmarks.speed.networks import write_teacher
from benchmarks.speed.rounds import Contest, contest, environment
from benchmarks.speed.setting import SMALL, Setting
from benchmarks.speed.summary import Summary, differences, ratios, summary

TRAINING = ("floor", "warm", "cold", "online", "timm_default", "timm_fastest", "torchdistill")
LOADERS = ("loader", "torchvision")
OVERHEAD = ("bare", "lightning", "kd_lightning")
RANKS = {"one_rank": 1, "two_ranks": 2}  # cores

Contests = dict[str, Contest]


def figures(contests: Contests) -> dict[str, Any]:
    """As they are written down."""
    return {name: contest.figures() for name, contest in contests.items()}


def rates(contests: Contests) -> dict[str, Sequence[float]]:
    """Contender -> images per second in each round."""
    return {name: contest.rates for name, contest in contests.items()}


def fill(setting: Setting) -> None:
    """Make the filled store, as a user does: by a training.

    Raises:
        RuntimeError: if it fails.
    """
    line = ours.arguments(setting, "fill", ours.stored(setting, setting.views, setting.store), setting.views)
    done = subprocess.run(
        [sys.executable, "-m", "kd_lightning", *line],
        cwd=setting.folder,
        env=environment(setting.threads),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"filling the store ended with {done.returncode}:\n{done.stderr[-3000:]}")


def help_seconds(times: int) -> Summary:
    """How long ``kd-lightning --help`` takes."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        command = [sys.executable, "-m", "kd_lightning", "--help"]
        subprocess.run(command, env=environment(1), stdout=subprocess.DEVNULL, check=True)
        taken.append(time.perf_counter() - start)
    return summary(taken)


@dataclass(frozen=True)
class Sections:
    """Prepares and runs them.

    Attributes:
        setting: Of the main pair.
        images: That are wanted.
        source: Folder of the user's data sets; None for noise.
        at_once: See `benchmarks.speed.rounds.contest`.
    """

    setting: Setting
    images: int
    source: Path | None
    at_once: bool

    def prepare(self, setting: Setting) -> int:
        """Write the images, the teacher and the store of a pair; how many training images there are."""
        side = setting.networks.side
        if not setting.root.exists():
            if side == SMALL and self.source is not None:
                write_cifar(setting.root, self.source, self.images)
            else:
                write_noise(setting.root, side, self.images)
        write_teacher(setting.networks, setting.weights)
        fill(setting)
        return len(one_by_one(setting, None))

    def _contest(self, names: Sequence[str], setting: Setting) -> Contests:
        return contest([(name, setting) for name in names], setting.rounds, self.at_once)

    def training(self, setting: Setting) -> Contests:
        """Floor, ours and the peers."""
        return self._contest(TRAINING, setting)

    def loaders(self) -> Contests:
        """Ours and torchvision's."""
        return self._contest(LOADERS, self.setting)

    def ranks(self) -> Contests:
        """One rank on one core, and two on two, if there are two."""
        if cores() < max(RANKS.values()):
            return {name: Contest(missing="there is one core only") for name in RANKS}
        entries = [(name, replace(self.setting, threads=1, cores=count)) for name, count in RANKS.items()]
        return contest(entries, self.setting.rounds, self.at_once)

    def overhead(self) -> Contests:
        """A tiny network with five terms, on one thread."""
        return self._contest(OVERHEAD, replace(self.setting, threads=1, cores=1))


def costs(overhead: Contests, floor: Contest) -> dict[str, Summary]:
    """What a step costs over a bare one, in milliseconds, and in per cent of a step of the floor."""
    bare, own = overhead["bare"].step_ms, differences(overhead["kd_lightning"].step_ms, overhead["bare"].step_ms)
    step = summary(floor.step_ms)["median"]
    return {
        "over_bare_ms": own,
        "lightning_over_bare_ms": differences(overhead["lightning"].step_ms, bare),
        "percent_of_floor_step": {key: 100 * value / step for key, value in own.items()},
    }


def of_pair(contests: Contests) -> dict[str, Any]:
    """Figures of the training section, and its ratios."""
    known = {name: ratio for name, ratio in ratios(rates(contests)).items() if ratio is not None}
    return {"contenders": figures(contests), "ratios": known}
