"""An evaluation's steps: answers are taken in, figures are logged."""

from collections.abc import Callable, Mapping, Set
from typing import Any, NamedTuple

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from kd_lightning.batch import Batch, as_batch
from kd_lightning.distillers.metrics import Evaluations
from kd_lightning.models import Outputs

Examined = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]
Teach = Callable[[Batch, Set[str]], dict[str, Outputs]]


class Answers(NamedTuple):
    """What was answered to a batch of an evaluation.

    Attributes:
        batch: The images as the student saw them, their labels and rows.
        student: Its logits ``[N, C]``.
        parts: Logits ``[N, C]`` of each of its parts, see `Distiller.parts`.
        teacher: Logits ``[N, C]`` of the teacher; None where there is none.
    """

    batch: Batch
    student: Tensor
    parts: Mapping[str, Tensor]
    teacher: Tensor | None


def take_in(
    batch: Any, metrics: Evaluations, examined: Examined, teach: Teach | None, together: bool
) -> Answers | None:
    """Let metrics take in the student's answers to a batch, and the teacher's; the answers, None to an empty batch.

    Args:
        batch: May be empty, as the last one is on some ranks.
        metrics: Of the stage.
        examined: The student's answers, see `Distiller.examined`.
        teach: The teacher's, see `Distiller.teach`; None where it is not compared.
        together: Whether the ranks gather weights together, so that one without samples answers to a black image.
    """
    batch = as_batch(batch)
    if not len(batch) and not together:
        return None
    image = batch.image
    asked = batch if len(batch) else Batch({"default": image.new_zeros(1, *image.shape[1:])}, batch.target.new_zeros(1))
    student, parts = examined(asked.image)
    told = teach(asked, {"default"})["default"].logits if teach is not None else None
    if not len(batch):
        return None
    metrics.update(student, parts, batch.target, told)
    return Answers(batch, student, parts, told)


def log_figures(
    module: pl.LightningModule, stage: str, figures: dict[str, float], to_loggers: Callable[[dict[str, float]], None]
) -> None:
    """Log figures as ``stage/*``, and show them.

    Args:
        module: That is evaluated.
        stage: ``val`` or ``test``.
        figures: The same on all ranks.
        to_loggers: Writes figures at the present step.
    """
    named = {f"{stage}/{name}": value for name, value in figures.items()}
    testing = stage == "test"  # its figures are what Trainer.test returns; others are logged at their own step
    module.log_dict(named, logger=testing, sync_dist=True)
    if not testing:
        to_loggers(named)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
    if not module.trainer.sanity_checking:
        rank_zero_info(f"epoch {module.current_epoch}: {stage} {shown}")
