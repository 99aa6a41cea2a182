"""What each scheme reaches: every ``configs/digits`` YAML, three seeds, accuracies of the last epoch on the test split.

Every configuration is fitted and tested as a user would do it; teachers come from their recipes, so they are the same
for all seeds of the student. Writes ``benchmarks/schemes.json`` and shows a table.

    python benchmarks/schemes.py [--seeds 0 1 2] [--runs FOLDER] [scheme/name ...]
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

REPOSITORY = Path(__file__).parents[1]
CONFIGS = REPOSITORY / "configs" / "digits"
RESULTS = Path(__file__).with_suffix(".json")


def started(folder: Path, *words: str) -> None:
    """Run a command of ``kd-lightning`` in a folder, one thread each.

    Raises:
        SystemExit: if it fails.
    """
    command = [sys.executable, "-m", "kd_lightning", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"kd-lightning {' '.join(words)} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def figures(path: Path, seed: int, folder: Path) -> dict[str, float]:
    """Train and test one configuration; every accuracy in [0, 1] of its test."""
    name = f"{path.parent.name}-{path.stem}-seed{seed}"
    run = folder / "runs" / "schemes" / name
    if not (run / "results.json").is_file():
        named = ["--seed_everything", str(seed), "--experiment=schemes", "--run", name]
        started(folder, "fit", "--config", str(path), *named, "--trainer.enable_progress_bar=false")
        started(folder, "test", str(run))
    found = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return {key.removeprefix("test/"): value for key, value in found.items() if key.endswith("top1")}


def summary(values: list[float]) -> dict[str, Any]:
    """Mean and sample standard deviation over the seeds."""
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else 0.0, "seeds": values}


def main() -> None:
    """Run, write and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, help="folder that keeps the runs; those that it has are not repeated")
    parser.add_argument("names", nargs="*", help="for instance online/dml; all by default")
    chosen = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    with contextlib.ExitStack() as stack:
        folder = chosen.runs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(CONFIGS.glob("*/*.yaml")):
            name = f"{path.parent.name}/{path.stem}"
            if chosen.names and name not in chosen.names:
                continue
            runs = [figures(path, seed, folder) for seed in chosen.seeds]
            results[name] = {key: summary([run[key] for run in runs]) for key in runs[0]}
            RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=2) + "\n", encoding="utf-8")
            for key, value in results[name].items():
                print(f"{name:28} {key:24} {100 * value['mean']:6.2f} ± {100 * value['std']:4.2f}", flush=True)


if __name__ == "__main__":
    main()
