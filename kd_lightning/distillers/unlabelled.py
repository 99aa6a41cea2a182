"""A transfer set without labels: what cannot be done with it is said before the first step."""

from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl

from kd_lightning.distillers.criteria import Criteria
from kd_lightning.models import Teacher


@runtime_checkable
class SaysLabelled(Protocol):
    """A data module that says whether its training images have labels."""

    labelled: bool


def check_unlabelled(trainer: pl.Trainer, criteria: Criteria, teacher: Teacher) -> None:
    """Let a run pass whose training images have labels, or that does not look at them.

    Raises:
        ValueError: if a term asks no teacher, or the teacher is to be examined on the training images.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if not isinstance(data, SaysLabelled) or data.labelled:
        return
    learning_from_labels = [name for name, term in criteria.terms.items() if not term.teacher_taps()]
    if learning_from_labels:
        raise ValueError(
            f"criteria.{learning_from_labels[0]} learns from labels, and the transfer set has none: leave it out"
        )
    if teacher.check is not False and not trainer.val_dataloaders:
        raise ValueError(
            "teacher.check needs validation images with labels, and the transfer set has none: set validate_on_test "
            "of the data to true, or teacher.check to false"
        )
