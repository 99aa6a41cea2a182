"""What the schemes with a teacher have in common: it is asked, examined before step 0, and known to the losses."""

import copy
from collections.abc import Callable, Iterable, Set
from typing import Protocol, cast, runtime_checkable

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from kd_lightning.batch import Batch
from kd_lightning.distillers.criteria import Criteria, Term
from kd_lightning.distillers.data_facts import views_of
from kd_lightning.distillers.examination import examine, judge
from kd_lightning.models import Outputs, TapPlan, Teacher, Views
from kd_lightning.models.taps import LOGITS


@runtime_checkable
class HasTemperature(Protocol):
    """A loss that softens what it compares."""

    temperature: object


OF_THE_TEACHER = frozenset({"teacher_classifier", "teacher_norms"})


def require_question(criteria: Criteria) -> None:
    """Let criteria pass that ask the teacher something.

    Raises:
        ValueError: if no term does.
    """
    if not criteria.teacher_taps():
        raise ValueError("no term of criteria asks the teacher: add one, or train a Classifier")


def set_up(teacher: Teacher, criteria: Criteria, num_classes: int, views: Views) -> TapPlan:
    """Set up the teacher with the taps that the criteria ask for; where they are."""
    teacher.require_temperatures(temperatures(criteria))
    teacher.setup(num_classes, views, criteria.teacher_taps())
    return teacher.plan()


def begin(teacher: Teacher, trainer: pl.Trainer, device: torch.device) -> None:
    """At the start of a training: bring the teacher to the student's device, and tell it of the data."""
    teacher.to(device)
    teacher.begin(views_of(trainer))


def temperatures(criteria: Criteria) -> dict[str, float | None]:
    """Name -> temperature of the terms that look at the teacher's logits; None where it is not one number."""
    asking = {name: term.loss for name, term in criteria.terms.items() if LOGITS in term.teacher_taps()}
    return {name: temperature_of(loss) for name, loss in asking.items()}


def temperature_of(loss: nn.Module) -> float | None:
    """The temperature that a loss divides the teacher's logits by, where it is one fixed number."""
    if not isinstance(loss, HasTemperature) or not isinstance(loss.temperature, int | float):
        return None
    if getattr(loss, "standardize", False):
        return None  # each sample has its own
    return float(loss.temperature)


def answers(teacher: Teacher, batch: Batch, views: Set[str], training: bool) -> dict[str, Outputs]:
    """The teacher's answer to each of these views; what is measured outside of training never looks at the labels."""
    ask = teacher if training else teacher.unlabelled
    return {view: ask(batch, view) for view in sorted(views)}


def known_of(teacher: Teacher, need: str, term: Term) -> object:
    """What a loss needs to know of the teacher, one of `OF_THE_TEACHER`.

    Raises:
        ValueError: if it is not known.
    """
    if need == "teacher_classifier":
        return teacher.classifier()
    return [norm for tap in term.teacher_taps() for norm in teacher.norms(tap)]


def examine_first(
    teacher: Teacher, trainer: pl.Trainer, num_classes: int, over_ranks: Callable[[Tensor], Tensor]
) -> None:
    """Show what is to be known of the teacher and the top-1 of it or of each member, and stop if one knows nothing.

    Args:
        teacher: On the student's device.
        trainer: Of the run; its validation images are looked at, or else those of the training.
        num_classes: C.
        over_ranks: The sum of a tensor over all ranks.

    Raises:
        ValueError: if it is near chance, or not what it is expected to be.
    """

    def asked(member: Teacher) -> tuple[float, int]:
        loaders = trainer.val_dataloaders or trainer.train_dataloader
        loader = copy.copy(loaders[0] if isinstance(loaders, list) else loaders)  # the training's own keeps its place

        def moved(batch: object) -> object:
            on_device: object = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
            return trainer.precision_plugin.convert_input(on_device)

        # A shuffling DataLoader draws from the global generator; the precision is the one that it teaches in.
        with torch.random.fork_rng(), trainer.precision_plugin.val_step_context():
            return examine(member, cast(Iterable[object], loader), moved, over_ranks)

    for notice in teacher.notices():
        rank_zero_info(notice)
    results, remembered = {}, teacher.remembered()
    for name, member in teacher.members().items():
        if member.check is False:
            continue
        known = name in remembered
        results[name] = top1, images = remembered[name] if known else asked(member)
        rank_zero_info(f"{name}: top-1 {top1:.4f} on {images} images{' when it was first asked' if known else ''}")
        try:
            judge(member, top1, images, num_classes)
        except ValueError as error:
            raise ValueError(f"{name}: {error}" if member is not teacher else str(error)) from error
    teacher.examined(results)
    for name, (top1, images) in results.items():  # for callbacks to show
        figures = {f"check/{name}_top1": torch.tensor(top1), f"check/{name}_images": torch.tensor(images)}
        trainer.callback_metrics.update(figures)
