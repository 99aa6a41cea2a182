"""What few views cost: top-1 of a student that learns from stored outputs of 1, 4 or all views of each image.

Trains ``configs/cifar100/offline/kd_stored.yaml`` for so many epochs with each number of views and each seed, and tests
the last epoch. As many views as epochs is the exact protocol. Writes ``benchmarks/views.json`` and shows a table.

    python benchmarks/views.py --root data --teacher runs/recipes/RUN [--epochs 16] [--views 1 4 16] [--seeds 0 1 2]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from kd_lightning.datamodules import CIFAR100DataModule

CONFIG = Path(__file__).parents[1] / "configs" / "cifar100" / "offline" / "kd_stored.yaml"
RESULTS = Path(__file__).with_suffix(".json")


def top1(views: int, seed: int, chosen: argparse.Namespace, folder: Path) -> float:
    """Train and test one student; its top-1 in [0, 1] after the last epoch.

    Raises:
        SystemExit: if a command fails.
    """
    name = f"views{views}-seed{seed}"
    fit = ["fit", "--config", str(CONFIG), f"--seed_everything={seed}", "--experiment=views", f"--run={name}"]
    fit += [f"--trainer.max_epochs={chosen.epochs}", "--trainer.enable_progress_bar=false"]
    fit += [f"--data.init_args.root={chosen.root.resolve()}", "--trainer.limit_val_batches=0"]
    fit += [f"--model.teacher.init_args.views={views}"]
    fit += [f"--model.teacher.init_args.teacher.init_args.network.weights={chosen.teacher.resolve()}"]
    for words in (fit, ["test", f"runs/views/{name}"]):
        command = [sys.executable, "-m", "kd_lightning", *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"kd-lightning {' '.join(words)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    results = json.loads((folder / "runs" / "views" / name / "results.json").read_text(encoding="utf-8"))
    return float(results["test/top1"])


def main() -> None:
    """Run, write and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder that holds cifar100/ or cifar-100-python/")
    parser.add_argument("--teacher", type=Path, required=True, help="run folder of a cifar_resnet56")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--views", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    chosen = parser.parse_args()
    data = CIFAR100DataModule(str(chosen.root))
    data.prepare_data()
    data.setup("fit")
    images = data.samples()
    found: dict[int, list[float]] = {views: [] for views in chosen.views}
    with tempfile.TemporaryDirectory() as folder:
        for seed in chosen.seeds:
            for views in chosen.views:
                found[views].append(top1(views, seed, chosen, Path(folder)))
                print(f"{views:3} views, seed {seed}: {100 * found[views][-1]:.2f} %", flush=True)
                rows: dict[str, Any] = {
                    str(count): {"top1_mean": mean(v), "top1_std": stdev(v) if len(v) > 1 else 0.0, "top1": v}
                    for count, v in found.items()
                    if v
                }
                result = {"epochs": chosen.epochs, "images": images, "seeds": chosen.seeds, "views": rows}
                RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
