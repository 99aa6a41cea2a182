"""Time per training step of every loss over that of plain soft targets, for ResNet-56 to ResNet-20 on 32x32 images.

Each round times some steps of each loss in turn, so that all share the machine's moods; the ratio is the median over
the rounds of the ratio within a round. Noise stands for the images. Writes ``benchmarks/losses.json``.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kd_lightning import losses
from kd_lightning.batch import Batch
from kd_lightning.distillers import Criteria, Term
from kd_lightning.losses import Loss
from kd_lightning.models import FrozenTeacher, Network, Outputs, Views
from kd_lightning.models.tap_plan import classifier_of, plan
from kd_lightning.models.taps import tapped

RESULTS = Path(__file__).with_suffix(".json")
REFERENCE = "SoftTarget"
CLASSES, SAMPLES, SHAPE, EPOCH = 100, 50_000, (3, 32, 32), 100
# For transformers, for several views, or for generated images.
LEFT_OUT = {
    "Activation",
    "AttentionProbabilities",
    "BatchNormStatistics",
    "ClassBalance",
    "DINO",
    "Discrepancy",
    "Loss",
    "OneHot",
}


def all_losses() -> dict[str, Loss]:
    """Every public loss with its default arguments."""
    made = {}
    for name in losses.__all__:
        kind = getattr(losses, name)
        if isinstance(kind, type) and issubclass(kind, Loss) and name not in LEFT_OUT:
            made[name] = kind(losses.SoftTarget()) if name == "CurriculumTemperature" else kind()
    return made


def stepper(loss: Loss, batch: Batch) -> tuple[Callable[[], None], int]:
    """A function that does one training step with this loss alone, and the parameters that the loss adds."""
    criteria = Criteria({"term": Term(loss)})
    student = Network("cifar_resnet20").build(CLASSES, seed=0).to(memory_format=torch.channels_last)
    teacher = FrozenTeacher(Network("cifar_resnet56").build(CLASSES, seed=1), check=False)
    teacher.setup(CLASSES, Views(SHAPE), criteria.teacher_taps())
    found = plan(student, criteria.student_taps(), SHAPE)
    criteria.build(found, teacher.plan())
    facts: dict[str, Callable[[Term], object]] = {
        "student_classifier": lambda term: classifier_of(student, SHAPE),
        "teacher_classifier": lambda term: teacher.classifier(),
        "teacher_norms": lambda term: [norm for tap in term.teacher_taps() for norm in teacher.norms(tap)],
        "train_targets": lambda term: torch.arange(SAMPLES) % CLASSES,
    }
    criteria.inform(lambda need, term: facts[need](term))
    added = sum(parameter.numel() for parameter in criteria.parameters())
    optimizer = torch.optim.SGD([*student.parameters(), *criteria.parameters()], lr=0.0, momentum=0.9)
    asks = bool(criteria.teacher_taps())

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with tapped(student, found.submodules()) as taps:
                logits = student(batch.image)
            told = {"default": teacher(batch)} if asks else {}
            value, _ = criteria({"default": Outputs(logits, found.picked(taps))}, told, batch, EPOCH)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, added


def timed(step: Callable[[], None], steps: int) -> float:
    """Seconds for so many steps."""
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return time.perf_counter() - start


def measured(rounds: int, steps: int, batch_size: int, names: list[str]) -> dict[str, Any]:
    """The figures of the losses of these names, or of all."""
    torch.manual_seed(0)
    images = torch.randn(batch_size, *SHAPE).to(memory_format=torch.channels_last)
    index = torch.randperm(SAMPLES)[:batch_size]
    batch = Batch({"default": images}, index % CLASSES, index, torch.zeros(batch_size, dtype=torch.int64))
    wanted = {name: loss for name, loss in all_losses().items() if not names or name in {*names, REFERENCE}}
    steppers = {name: stepper(loss, batch) for name, loss in wanted.items()}
    for step, _ in steppers.values():
        timed(step, 2)
    times: dict[str, list[float]] = {name: [] for name in steppers}
    for _ in range(rounds):
        for name, (step, _) in steppers.items():
            times[name].append(timed(step, steps) / steps)
    reference = times[REFERENCE]
    figures = {
        name: {
            "extra_parameters": added,
            "relative_time": round(
                statistics.median(own / theirs for own, theirs in zip(times[name], reference, strict=True)), 2
            ),
        }
        for name, (_, added) in steppers.items()
    }
    setting = {
        "pair": "cifar_resnet56 to cifar_resnet20",
        "batch": batch_size,
        "precision": "bf16-mixed, channels_last",
        "device": f"CPU, {torch.get_num_threads()} threads of {os.cpu_count()}",
        "torch": torch.__version__,
        "rounds": rounds,
        "steps": steps,
        "reference_ms": round(1000 * statistics.median(reference), 1),
    }
    return {"setting": setting, "losses": figures}


def main() -> None:
    """Measure, write and show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("names", nargs="*", help="losses to measure anew; all by default")
    options = parser.parse_args()
    results = measured(options.rounds, options.steps, options.batch_size, options.names)
    if options.names:
        before = json.loads(RESULTS.read_text(encoding="utf-8"))
        results = {"setting": before["setting"], "losses": before["losses"] | results["losses"]}
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    for name, figures in results["losses"].items():
        print(f"{name:24} {figures['extra_parameters']:>10,} {figures['relative_time']:6.2f}x")


if __name__ == "__main__":
    main()
