"""Distillation against the student alone, timm's task and torchdistill, all in one run.

Every contender is a process that stays alive and does one whole epoch when it is its turn, so that all share the
machine's moods; ratios are taken within a round. What there is to know of each contender is in its file.

    python -m benchmarks.speed [--root DATA] [--rounds 5] [--images 12800] [--threads 2]
"""

import argparse
import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.machine import commit, cores, machine, slug, versions
from benchmarks.speed.plot import plot
from benchmarks.speed.rounds import Contest
from benchmarks.speed.sections import Sections, costs, figures, help_seconds, of_pair, rates
from benchmarks.speed.setting import MAIN, ON_GPU, PAIRS, QUICK, SMALL, Setting
from benchmarks.speed.summary import ratios
from benchmarks.speed.table import table

RESULTS = Path(__file__).parents[1] / "results"
IMAGES, IMAGES_ON_GPU = 12_800, 50_000  # an epoch of a GPU would be too short with fewer
FOLDERS = ("cifar100", "cifar-100-python")


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root", type=Path, default=os.environ.get("KD_LIGHTNING_DATA"), help="holds cifar100/; without it, noise"
    )
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each contender that count")
    parser.add_argument("--images", type=int, help="in an epoch; 12,800, and 50,000 on a GPU")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=cores(), help="and cores, of each contender")
    parser.add_argument("--views", type=int, default=4, help="of each image in the filled store")
    parser.add_argument("--quick", action="store_true", help="see that it works: the figures mean nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file and the plot")
    chosen = parser.parse_args()
    for name in ("rounds", "batch", "threads", "views"):
        if getattr(chosen, name) < 1:
            parser.error(f"--{name} must be >= 1, got {getattr(chosen, name)}")
    if chosen.images is None:
        chosen.images = IMAGES_ON_GPU if torch.cuda.is_available() else IMAGES
    if chosen.quick:
        chosen.rounds, chosen.images, chosen.batch, chosen.views = 2, 200, 64, 1
    if chosen.root is not None and not any((chosen.root / name).is_dir() for name in FOLDERS):
        parser.error(f"--root must hold {' or '.join(FOLDERS)}, got {chosen.root}")
    return chosen


def measured(chosen: argparse.Namespace, folder: str) -> dict[str, Any]:
    """All results."""
    names = (QUICK,) if chosen.quick else (MAIN, *(ON_GPU if torch.cuda.is_available() else ()))
    settings = [
        Setting(folder, name, chosen.batch, chosen.rounds, chosen.threads, chosen.threads, chosen.views)
        for name in names
    ]
    sections = Sections(settings[0], chosen.images, chosen.root, chosen.quick)
    pairs: dict[str, Any] = {}
    contests: dict[str, Contest] = {}
    for setting in settings:
        count = sections.prepare(setting)
        trained = sections.training(setting)
        real = chosen.root is not None and PAIRS[setting.pair].side == SMALL
        pairs[setting.pair] = of_pair(trained) | {"images": count, "data": "CIFAR-100" if real else "noise"}
        contests = contests or dict(trained)
    loaders, ranks, overhead = sections.loaders(), sections.ranks(), sections.overhead()
    return {
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "versions": versions(),
        "threads": chosen.threads,
        "images": pairs[names[0]]["images"],
        "data": "noise in place of CIFAR-100" if chosen.root is None else "CIFAR-100",
        "batch": chosen.batch,
        "rounds": chosen.rounds,
        "views": chosen.views,
        "quick": chosen.quick,
        "pairs": pairs,
        "loaders": {"contenders": figures(loaders)},
        "ranks": {"contenders": figures(ranks)},
        "overhead": {"contenders": figures(overhead), "costs": costs(overhead, contests["floor"])},
        "help_seconds": help_seconds(chosen.rounds),
        "ratios": ratios(rates(contests | loaders | ranks)),
    }


def main() -> None:
    """Measure, write and show."""
    chosen = options()
    with tempfile.TemporaryDirectory() as folder:
        results = measured(chosen, folder)
    chosen.results.mkdir(parents=True, exist_ok=True)
    path = chosen.results / f"{slug(results['machine'])}.json"
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    plot(results, path.with_suffix(".png"))
    print(f"\n{table(results)}\n\nwritten: {path} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
