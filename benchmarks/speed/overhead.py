"""What modules, metrics and logging cost: five terms on a tiny network, bare, in Lightning alone, and in ours."""

import json
from collections.abc import Iterator

import lightning.pytorch as pl
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.speed import ours
from benchmarks.speed.floor import our_loader
from benchmarks.speed.networks import sgd
from benchmarks.speed.setting import CLASSES, Setting
from benchmarks.speed.turns import turns
from kd_lightning.batch import Batch
from kd_lightning.losses import CrossEntropy, SoftTarget

TEMPERATURES = (1.0, 2.0, 3.0, 4.0)
WEIGHT = 0.2  # of each of five terms
BATCH = 16
CPU = torch.device("cpu")
TINY = "benchmarks.speed.overhead.Tiny"


class Tiny(nn.Module):
    """Mean colour and a linear layer: next to no time is spent in it.

    Args:
        num_classes: C.
        in_chans: Channels of the images.
    """

    def __init__(self, num_classes: int, in_chans: int = 3) -> None:
        super().__init__()
        self.head = nn.Linear(in_chans, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``[N, C]``."""
        logits: Tensor = self.head(image.mean((2, 3)))
        return logits


class FiveTerms:
    """The loss of a tiny student by a tiny teacher; plain functions, nothing is kept.

    Args:
        student: The network that is trained.
    """

    def __init__(self, student: nn.Module) -> None:
        self.student, self.teacher = student, Tiny(CLASSES).requires_grad_(False).eval()
        self.cross_entropy, self.soft = CrossEntropy(), [SoftTarget(temperature) for temperature in TEMPERATURES]

    def __call__(self, batch: Batch) -> Tensor:
        """The weighted sum of five terms."""
        logits = self.student(batch.image)
        with torch.no_grad():
            answer = self.teacher(batch.image)
        terms = [self.cross_entropy(logits, None, batch.target)]
        terms += [loss(logits, answer, batch.target) for loss in self.soft]
        return torch.stack(terms).sum() * WEIGHT


class Alone(pl.LightningModule):
    """What Lightning needs, and nothing that is logged.

    Args:
        student: The network that is trained.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student, self._loss = student, FiveTerms(student)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss."""
        return self._loss(batch)

    def configure_optimizers(self) -> torch.optim.SGD:
        """The optimizer of every contender."""
        return sgd(self.student)


def bare(setting: Setting) -> None:
    """A bare loop."""
    student, loader = Tiny(CLASSES), our_loader(setting, BATCH, CPU)
    optimizer, loss_of = sgd(student), FiveTerms(student)

    def epoch(number: int) -> Iterator[int]:
        loader.plan.set_epoch(number)
        for batch in loader:
            loss_of(batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            yield len(batch)

    turns().serve(epoch)


def lightning(setting: Setting) -> None:
    """Lightning without its checkpoints, logger and progress bar."""
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=setting.rounds + 1,
        logger=False,
        enable_checkpointing=True,
        callbacks=[ours.InTurns()],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Alone(Tiny(CLASSES)), our_loader(setting, BATCH, CPU))


def kd_lightning(setting: Setting) -> None:
    """``kd-lightning fit``, without the progress bar, which neither of the others has; five terms are logged."""
    weights = "tiny.safetensors"
    save_file(Tiny(CLASSES).state_dict(), weights)
    network = {"name": TINY, "weights": weights}
    teacher = {"class_path": "FrozenTeacher", "init_args": {"network": network, "check": False}}
    line = ours.arguments(setting, "overhead", teacher, setting.rounds + 1)
    criteria = {"ce": {"loss": "CrossEntropy", "weight": WEIGHT, "teacher": None}}
    for temperature in TEMPERATURES:
        loss = {"class_path": "SoftTarget", "init_args": {"temperature": temperature}}
        criteria[f"kd{temperature:.0f}"] = {"loss": loss, "weight": WEIGHT}
    line += [f"--model.init_args.criteria={json.dumps(criteria)}"]
    line += [f"--model.init_args.student={json.dumps({'name': TINY})}", "--trainer.enable_progress_bar=false"]
    line += [f"--data.init_args.global_batch_size={BATCH}", "--trainer.precision=32-true"]
    ours.fit([*line, "--trainer.accelerator=cpu"])
