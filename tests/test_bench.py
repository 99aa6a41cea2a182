"""The benchmark of speed: its ratios, its protocol, and the whole of it with figures that mean nothing."""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.speed import turns as turns_module  # noqa: E402
from benchmarks.speed.images import some_of_each_class  # noqa: E402
from benchmarks.speed.machine import cores, slug  # noqa: E402
from benchmarks.speed.rounds import Contest  # noqa: E402
from benchmarks.speed.setting import Setting  # noqa: E402
from benchmarks.speed.summary import RATIOS, differences, paired, ratios, summary  # noqa: E402
from benchmarks.speed.table import SAID, WANTED, aligned, contender_rows  # noqa: E402
from benchmarks.speed.turns import quickest  # noqa: E402

KEYS = {
    "warm_over_floor",
    "warm_over_timm_fastest",
    "warm_over_torchdistill",
    "online_over_timm_fastest",
    "loader_over_torchvision",
    "two_ranks_over_one",
}


def test_a_summary_is_the_median_and_the_range() -> None:
    assert summary([3.0, 1.0, 2.0, 10.0]) == {"median": 2.5, "min": 1.0, "max": 10.0}
    with pytest.raises(ValueError, match="values must be one number at least, got none"):
        summary([])


def test_a_ratio_is_taken_within_each_round() -> None:
    # The machine is 10 times slower in the second round: the ratio of the medians would be 60 / 20 = 3.
    assert paired([60.0, 4.0, 90.0], [20.0, 2.0, 45.0]) == {"median": 2.0, "min": 2.0, "max": 3.0}
    assert differences([3.0, 5.0], [1.0, 4.5]) == {"median": 1.25, "min": 0.5, "max": 2.0}


def test_what_was_not_measured_has_no_ratio() -> None:
    found = ratios({"warm": [90.0, 96.0], "floor": [100.0, 100.0], "torchdistill": [], "loader": [1.0, 1.0]})
    assert found.keys() == KEYS == RATIOS.keys() == WANTED.keys()
    assert found.pop("warm_over_floor") == pytest.approx({"median": 0.93, "min": 0.9, "max": 0.96})
    assert set(found.values()) == {None}


def test_rounds_must_be_pairs() -> None:
    with pytest.raises(ValueError, match="both must have as many rounds, got 2 and 1"):
        paired([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="both must have as many rounds, got 1 and 2"):
        differences([1.0], [1.0, 2.0])


def test_the_table_says_what_is_missing() -> None:
    measured = Contest(
        note="2 workers", startup=3.21, peak_bytes=1_234_000_000, rates=[90.0, 110.0], step_ms=[1.5, 2.5]
    )
    contenders = {"warm": measured, "torchdistill": Contest(missing="torchdistill is not installed")}
    rows = contender_rows({name: contest.figures() for name, contest in contenders.items()})
    assert rows[0] == [SAID["warm"], "100 (90–110)", "2.00 (1.50–2.50)", "1,234", "3.2", "2 workers"]  # noqa: RUF001
    assert rows[1] == [SAID["torchdistill"], "torchdistill is not installed", "", "", "", ""]
    assert aligned([["a", "bb"], ["ccc", ""]]) == "| a   | bb |\n|-----|----|\n| ccc |    |"


def test_a_machine_names_a_file() -> None:
    assert slug("AMD EPYC (Genoa) 9R14, 2 cores") == "amd-epyc-genoa-9r14-2-cores"


def test_classes_have_as_many_images() -> None:
    labels = np.tile(np.arange(100), 3)
    rows = some_of_each_class(labels, 2)
    assert rows.tolist() == list(range(200))
    assert len(some_of_each_class(labels, 5)) == 300


def test_a_setting_survives_the_command_line() -> None:
    setting = Setting("folder", "resnet56_resnet20", 128, 5, 2, 2, 4)
    assert Setting.of(setting.text()) == setting


class Said(turns_module.Turns):
    """Keeps what it is to say, and has so many turns."""

    def __init__(self, left: int) -> None:
        self.said: list[dict[str, float]] = []
        self.left = left
        self._started = False

    def wait(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise SystemExit(0)

    def say(self, **facts: float) -> None:
        self.said.append(facts)


def test_an_epoch_is_timed_and_counted() -> None:
    said = Said(2)

    def epoch(number: int) -> Iterator[int]:
        for count in (4, 4, 2):
            time.sleep(0.01 * (1 + number))
            yield count

    with pytest.raises(SystemExit):
        said.serve(epoch)
    first, one, two = said.said
    assert first.keys() == {"first_step"}
    assert (one["images"], one["steps"], two["images"], two["steps"]) == (10, 3, 10, 3)
    assert 0.03 <= one["seconds"] < two["seconds"]
    assert one["peak_bytes"] > 10e6


def test_the_quicker_number_of_workers_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    said = Said(0)
    monkeypatch.setattr(turns_module, "turns", lambda: said)
    seconds = {0: 0.02, 2: 0.001}

    def epoch_of(workers: int) -> turns_module.Epoch:
        def epoch(number: int) -> Iterator[int]:
            for _ in range(8):
                time.sleep(seconds[workers])
                yield 1

        return epoch

    assert quickest(epoch_of, [0, 2], steps=3) == 2
    seconds.update({0: 0.001, 2: 0.02})
    assert quickest(epoch_of, [0, 2], steps=3) == 0


def test_turns_end_with_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = turns_module.Turns.__new__(turns_module.Turns)
    monkeypatch.setattr(sys, "stdin", io.StringIO("go\n"))
    waiting.wait()
    with pytest.raises(SystemExit):
        waiting.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_of_it(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "KD_LIGHTNING_DATA"}
    command = [sys.executable, "-m", "benchmarks.speed", "--quick", "--threads", "1", "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = tmp_path.glob("*.json")
    results = json.loads(path.read_text(encoding="utf-8"))
    assert path.stem == slug(results["machine"])
    assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert results["data"] == "noise in place of CIFAR-100"
    assert results["images"] == 200
    assert results["ratios"].keys() == KEYS
    measurable = {"warm_over_torchdistill": find_spec("torchdistill"), "two_ranks_over_one": cores() > 1}
    for name, ratio in results["ratios"].items():
        if not measurable.get(name, True):
            assert ratio is None
            continue
        assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
    (pair,) = results["pairs"].values()
    parts = [pair, results["loaders"], results["ranks"], results["overhead"]]
    contenders = {name: figures for part in parts for name, figures in part["contenders"].items()}
    assert contenders.keys() == SAID.keys()
    for name, figures in contenders.items():
        if "missing" not in figures:
            assert len(figures["images_per_second"]["rounds"]) == 2, name
            assert figures["startup_seconds"] > 0.5
            assert figures["peak_mb"] > 50
        assert SAID[name] in done.stdout
