"""Where two ranks on two cores lose time: ResNet-20 on the CPU, 64 images a rank, bare steps of five kinds in turns.

``alone``: the first rank works and the other rests; ``silent``: both work and say nothing; ``waiting``: each step ends
at a barrier; ``lightning``: torch's DDP as Lightning's ``ddp`` has it, which also sends buffers in every step;
``quiet``: DDP as `QuietDDP` has it. Writes ``benchmarks/ranks.json`` and shows a table of milliseconds per step.

    python -m benchmarks.ranks [--steps 25] [--rounds 6]
"""

import argparse
import json
import os
import socket
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.speed.bare_step import Then, bare_step
from kd_lightning.cli.allocator import keep_freed_memory
from kd_lightning.models import Network

RESULTS = Path(__file__).with_suffix(".json")
RANKS, BATCH, CLASSES, SIDE = 2, 64, 100, 32
QUIET = {"gradient_as_bucket_view": True, "static_graph": True, "broadcast_buffers": False}

Step = Callable[[], None]


def stepping(network: nn.Module, then: Then = lambda: None) -> Step:
    """A step of training on noise; something may follow the backward pass."""
    image = torch.randn(BATCH, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
    target = torch.randint(CLASSES, (BATCH,))
    return partial(bare_step(network, True, then), image, target)


def student() -> nn.Module:
    """The network of every kind of step."""
    return Network("cifar_resnet20").build(CLASSES, 3).to(memory_format=torch.channels_last).train()


def work(rank: int, port: int, steps: int, rounds: int, path: str) -> None:
    """One rank; the first one writes what it has measured."""
    keep_freed_memory()  # as the command line does
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    kinds: dict[str, Step] = {
        "alone": stepping(student()) if rank == 0 else lambda: None,
        "silent": stepping(student()),
        "waiting": stepping(student(), dist.barrier),
        "lightning": stepping(DistributedDataParallel(student())),
        "quiet": stepping(DistributedDataParallel(student(), **QUIET)),
    }
    taken: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds + 1):
        for kind, step in kinds.items():
            dist.barrier()
            start = time.perf_counter()
            for _ in range(steps):
                step()
            dist.barrier()
            if number > 0:
                taken[kind].append(1000 * (time.perf_counter() - start) / steps)
    if rank == 0:
        Path(path).write_text(json.dumps(taken))
    dist.destroy_process_group()


def main() -> None:
    """Measure, write and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=6)
    chosen = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = (port, chosen.steps, chosen.rounds, str(RESULTS))
    torch.multiprocessing.spawn(work, given, nprocs=RANKS)
    taken = json.loads(RESULTS.read_text())
    shown = {kind: {"median": median(ms), "min": min(ms), "max": max(ms)} for kind, ms in taken.items()}
    facts = {"threads": 1, "batch": BATCH, "torch": torch.__version__, "steps": chosen.steps, "rounds": chosen.rounds}
    RESULTS.write_text(json.dumps(facts | {"step_ms": shown}, indent=2) + "\n", encoding="utf-8")
    for kind, figures in shown.items():
        print(f"| {kind:9} | {figures['median']:6.1f} ms ({figures['min']:.1f}–{figures['max']:.1f}) |")  # noqa: RUF001


if __name__ == "__main__":
    main()
