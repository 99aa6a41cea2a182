"""The rounds: every contender of a section has one turn in each, one after the other."""

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.speed.setting import REPOSITORY, Setting
from benchmarks.speed.summary import Summary, summary

SHOWN = 3000  # characters of a failed contender's words


@dataclass
class Contest:
    """What was measured of one contender; empty where it is missing.

    Attributes:
        missing: Why it is.
        note: What it chose itself.
        startup: From the start of the process to the end of its first step, in seconds.
        peak_bytes: The most memory that its process held, without loader workers and other ranks.
        device_peak_bytes: The same of the device; 0 without one.
        rates: Images per second in each round.
        step_ms: Milliseconds per step in each round.
    """

    missing: str | None = None
    note: str = ""
    startup: float = 0.0
    peak_bytes: int = 0
    device_peak_bytes: int = 0
    rates: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """As it is written down."""
        if self.missing is not None:
            return {"missing": self.missing}
        images: Summary = summary(self.rates)
        figures: dict[str, Any] = {"images_per_second": images | {"rounds": self.rates}}
        figures["step_ms"] = summary(self.step_ms)
        figures |= {"peak_mb": round(self.peak_bytes / 1e6), "startup_seconds": round(self.startup, 2)}
        if self.device_peak_bytes:
            figures["device_peak_mb"] = round(self.device_peak_bytes / 1e6)
        return figures | ({"note": self.note} if self.note else {})


def environment(threads: int) -> dict[str, str]:
    """Of a process that finds this benchmark from any folder, with so many threads."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PL_")}
    return kept | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}


class Contender:
    """A process that does one epoch when it is told to.

    Args:
        name: Key of `benchmarks.speed.contend.CONTENDERS`.
        setting: What it is told.
    """

    def __init__(self, name: str, setting: Setting) -> None:
        self.name, self.contest = name, Contest()
        folder = Path(setting.folder) / "contenders" / setting.pair / name
        folder.mkdir(parents=True)
        self._log = folder / "log.txt"
        self._born = time.time()
        command = [sys.executable, "-m", "benchmarks.speed.contend", name, setting.text()]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment(setting.threads),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def go(self) -> None:
        """Give it a turn."""
        if self._process.stdin is not None and self.contest.missing is None:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()

    def take(self, counts: bool) -> None:
        """Wait for the end of its turn, and keep the figures if they count.

        Raises:
            RuntimeError: if it died.
        """
        while self.contest.missing is None:
            line = self._process.stdout.readline() if self._process.stdout is not None else ""
            if not line:
                said = self._log.read_text(encoding="utf-8", errors="replace")[-SHOWN:]
                raise RuntimeError(f"{self.name} ended with {self._process.wait()} in its turn:\n{said}")
            facts = json.loads(line)
            self.contest.missing = facts.get("missing")
            self.contest.note = facts.get("note", self.contest.note)
            if "first_step" in facts:
                self.contest.startup = facts["first_step"] - self._born
            if "seconds" in facts:
                self.contest.peak_bytes = facts["peak_bytes"]
                self.contest.device_peak_bytes = facts.get("device_peak_bytes", 0)
                if counts:
                    self.contest.rates.append(facts["images"] / facts["seconds"])
                    self.contest.step_ms.append(1000 * facts["seconds"] / facts["steps"])
                return

    def end(self) -> None:
        """There are no more turns; wait until it has gone."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def contest(entries: Sequence[tuple[str, Setting]], rounds: int, at_once: bool) -> dict[str, Contest]:
    """Each contender's figures; one epoch of each goes before the rounds, and does not count.

    Args:
        entries: Names and settings.
        rounds: That count.
        at_once: Start all at the same time, which makes start-up times meaningless.
    """
    contenders: list[Contender] = []
    try:
        for name, setting in entries:
            contenders.append(Contender(name, setting))
            contenders[-1].go()
            if not at_once:
                contenders[-1].take(counts=False)
        for contender in contenders if at_once else []:
            contender.take(counts=False)
        order = deque(contenders)
        for number in range(rounds):
            for contender in order:
                contender.go()
                contender.take(counts=True)
            order.rotate(-1)  # nobody always comes after the same
            print(f"round {number + 1} of {rounds}: {', '.join(name for name, _ in entries)}", flush=True)
    finally:
        for contender in contenders:
            contender.end()
    return {contender.name: contender.contest for contender in contenders}
