"""Where the time of a step goes: the student alone, ResNet-20 at batch 128, as the floor of ``make bench`` trains it.

Writes ``benchmarks/step.json`` and shows a table: of each kind of operator, its share of the time that operators take.

    python -m benchmarks.step [--threads 2] [--steps 30]
"""

import argparse
import json
import os
import platform
from collections import defaultdict
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.bare_step import bare_step
from kd_lightning.cli.allocator import keep_freed_memory
from kd_lightning.models import Network

RESULTS = Path(__file__).with_suffix(".json")
BATCH, CLASSES, SIDE = 128, 100, 32
KINDS = {
    "convolution_backward": "convolutions, backward",
    "mkldnn_convolution": "convolutions, forward",
    "native_batch_norm_backward": "batch normalisation, backward",
    "native_batch_norm": "batch normalisation, forward",
    "threshold_backward": "ReLU, backward",
    "clamp_min": "ReLU, forward",
    "add": "sums of residuals and gradients",
    "add_": "sums of residuals and gradients",
}
REST = "all else: casts, optimizer, loss, classifier, Python"


def shares(steps: int) -> dict[str, float]:
    """Kind -> share in [0, 1], greatest first."""
    keep_freed_memory()  # as the command line does
    student = Network("cifar_resnet20").build(CLASSES, 3).to(memory_format=torch.channels_last).train()
    step, target = bare_step(student, True), torch.randint(CLASSES, (BATCH,))
    image = torch.randn(BATCH, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
    for _ in range(5):
        step(image, target)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(steps):
            step(image, target)
    spent: dict[str, float] = defaultdict(float)
    for operator in seen.key_averages():
        spent[KINDS.get(operator.key.removeprefix("aten::"), REST)] += operator.self_cpu_time_total
    total = sum(spent.values())
    return {kind: time / total for kind, time in sorted(spent.items(), key=lambda found: -found[1])}


def main() -> None:
    """Measure, write and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--steps", type=int, default=30)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    found = shares(chosen.steps)
    facts = {
        "machine": platform.machine(),
        "threads": chosen.threads,
        "steps": chosen.steps,
        "torch": torch.__version__,
    }
    RESULTS.write_text(json.dumps(facts | {"shares": found}, indent=2) + "\n", encoding="utf-8")
    for kind, share in found.items():
        print(f"| {kind:48} | {share:6.1%} |")


if __name__ == "__main__":
    main()
