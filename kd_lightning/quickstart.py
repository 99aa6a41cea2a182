"""`make run`: on real images, what a teacher reaches, what a student reaches alone, and what it reaches distilled."""

import json
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from rich.console import Console

from kd_lightning import packaged
from kd_lightning.cli.commands import run
from kd_lightning.cli.quiet import quiet
from kd_lightning.cli.report import Asked, made
from kd_lightning.run_folder import RunFolder, git_commit
from kd_lightning.whole_file import write_json

CONFIGS = packaged.CONFIGS / "digits"
TEACHER, ALONE, DISTILLED = "teacher", "alone", "distilled"
SEEDS = (0, 1, 2)
FOLDER = Path("runs/digits")
PLANS = {TEACHER: "supervised/teacher.yaml", ALONE: "supervised/student.yaml", DISTILLED: "offline/kd.yaml"}
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")


def run_folder(name: str, seed: int) -> RunFolder:
    """The folder of one of the nine runs."""
    return RunFolder(FOLDER / f"{name}-seed{seed}")


def carried_out(name: str, seed: int, overrides: Sequence[str]) -> float:
    """Train and test one run; its top-1 in [0, 1] on the test split after the last epoch.

    Raises:
        RuntimeError: if a command fails.
    """
    folder = run_folder(name, seed)
    line = ["fit", "--config", str(CONFIGS / PLANS[name]), "--seed_everything", str(seed)]
    line += ["--experiment", FOLDER.name, "--run", folder.path.name]
    if name == DISTILLED:
        line += ["--model.teacher.init_args.network.weights", str(run_folder(TEACHER, seed).path)]
    for command in ([*line, *QUIET, *overrides], ["test", str(folder.path), "--verbose=false"]):
        if code := run(command):
            raise RuntimeError(f"kd-lightning {' '.join(command)} ended with exit code {code}")
    return float(json.loads(folder.results.read_text())["test/top1"])


def main(overrides: Sequence[str] = ()) -> None:
    """Train, test and compare nine runs in ``runs/digits``; an earlier set is moved to ``runs/digits.<time>``.

    Args:
        overrides: Options for each ``fit``, for a shorter trial.
    """
    torch.set_num_threads(1)  # in networks this small, threads wait for each other longer than they work
    console, started = Console(), time.time()
    if FOLDER.exists():
        moved = FOLDER.rename(f"{FOLDER}.{time.strftime('%Y-%m-%d-%H%M%S')}")
        console.print(f"the earlier runs are now in {moved}")
    top1: dict[str, list[float]] = {name: [] for name in PLANS}
    for done, (seed, name) in enumerate(product(SEEDS, PLANS), start=1):
        with console.status(f"{name}, seed {seed}: training"), quiet():
            top1[name].append(carried_out(name, seed, overrides))
        console.print(
            f"[{done}/{len(PLANS) * len(SEEDS)}] {name}, seed {seed}: top-1 {100 * top1[name][-1]:.2f} %, "
            f"{time.time() - started:.0f} s so far",
            markup=False,
        )
    runs = [run_folder(name, seed) for name in PLANS for seed in SEEDS]
    report = made(Asked(runs, FOLDER / "report", "last", ()), console)
    seconds = round(time.time() - started, 1)
    write_json(FOLDER / "results.json", {**report.as_json(), "commit": git_commit(), "seconds": seconds})


if __name__ == "__main__":
    main()
