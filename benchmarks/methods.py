"""Each method's distillation term before and after some steps: ``configs/cifar100/offline/*.yaml`` on real CIFAR-100.

Starts every configuration as a user would, for one epoch of so many batches, and reads the term's first and last mean
in ``metrics.csv``. Writes ``benchmarks/methods.json`` and shows a table.

    python benchmarks/methods.py --root data --teacher cifar_resnet56=runs/recipes/RUN [--batches 50] [method ...]
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[1]
CONFIGS = REPOSITORY / "configs" / "cifar100"
RESULTS = Path(__file__).with_suffix(".json")
EVERY = 10  # steps that one logged mean is over


def methods() -> list[Path]:
    """The configurations of the standard pair's methods, and the pair's soft targets."""
    teachers = {path.stem for path in CONFIGS.glob("supervised/*.yaml")}
    pairs = {path for path in CONFIGS.glob("offline/*.yaml") for t in teachers if path.stem.startswith(f"kd_{t}_")}
    kept = set(CONFIGS.glob("offline/*.yaml")) - pairs | {CONFIGS / "offline" / "kd_resnet56_resnet20.yaml"}
    return sorted(kept)


def options(path: Path, root: Path, teachers: dict[str, str], batches: int) -> list[str]:
    """How a configuration is started; a teacher that is not given is trained by its recipe first."""
    init = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["init_args"]
    given = [f"--data.init_args.root={root.resolve()}", f"--trainer.log_every_n_steps={EVERY}"]
    given += ["--trainer.max_epochs=1", f"--trainer.limit_train_batches={batches}", "--trainer.limit_val_batches=0"]
    network = ((init["teacher"] or {}).get("init_args") or {}).get("network")  # of one frozen teacher
    if network is None or (name := network["name"]) not in teachers:
        return given
    weights = str(Path(teachers[name]).resolve())
    given += [f"--model.teacher.init_args.network.weights={weights}"]
    student = init["student"]
    if "teacher" in student.get("kwargs", {}):
        own = student["kwargs"]["teacher"] | {"weights": weights}
        given.append(f"--model.student.kwargs={student['kwargs'] | {'teacher': own}}")
    return given


def terms(run: Path, path: Path) -> dict[str, tuple[float, float]]:
    """First and last logged mean of each active term that asks the teacher."""
    criteria = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["init_args"]["criteria"]
    asking = [name for name, term in criteria.items() if term.get("teacher", "default") is not None]
    with (run / "metrics.csv").open(encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    means = {name: [float(row[key]) for row in rows if row.get(key := f"train/{name}")] for name in asking}
    return {name: (values[0], values[-1]) for name, values in means.items() if values}


def main() -> None:
    """Run, write and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder that holds cifar100/ or cifar-100-python/")
    parser.add_argument(
        "--teacher", action="append", default=[], metavar="NETWORK=PATH", help="run folder or weights of a teacher"
    )
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("names", nargs="*", help="methods; all by default")
    chosen = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    teachers = dict(pair.split("=", 1) for pair in chosen.teacher)
    for path in methods():
        if chosen.names and path.stem not in chosen.names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            given = options(path, chosen.root, teachers, chosen.batches)
            command = [sys.executable, "-m", "kd_lightning", "fit", "--config", str(path), *given]
            done = subprocess.run(
                [*command, "--experiment=e", "--run=r"], cwd=folder, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(f"{path.stem} ended with {done.returncode}:\n{done.stderr[-2000:]}")
            found = terms(Path(folder) / "runs/e/r", path)
        results[path.stem] = {name: {"before": before, "after": after} for name, (before, after) in found.items()}
        RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=2) + "\n", encoding="utf-8")
        for name, (before, after) in found.items():
            print(f"{path.stem:24} {name:12} {before:12.5g} {after:12.5g}", flush=True)


if __name__ == "__main__":
    main()
