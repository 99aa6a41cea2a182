"""A run, examined: what its student and its teacher answer to the test images, and what they cost."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import lightning.pytorch as pl
import torch
import yaml
from torch import Tensor, nn

from kd_lightning.batch import Batch
from kd_lightning.distillers import Distiller
from kd_lightning.distillers.criteria import Criteria
from kd_lightning.distillers.data_facts import class_names, views_of
from kd_lightning.distillers.evaluating import Answers
from kd_lightning.distillers.notable_images import Notable, NotableImages
from kd_lightning.distillers.onlooker import Onlooker
from kd_lightning.distillers.teaching import HasTemperature, temperatures
from kd_lightning.models import FrozenTeacher
from kd_lightning.models.taps import LOGITS
from kd_lightning.report.cka import stage_cka
from kd_lightning.report.profile import Profile, Profiler, together
from kd_lightning.run_folder import RunFolder

MISSED, UNSURE = 24, 6  # so many notable images of each kind are shown
CKA_IMAGES = 256  # the first of the test set


class Cka(NamedTuple):
    """CKA between student stages and teacher stages, ``[S, T]``, at initialisation and after the training."""

    before: Tensor
    after: Tensor


class Examined(NamedTuple):
    """What is known of a run after its examination.

    Attributes:
        run: Its folder.
        config: Its ``config.yaml``.
        classes: Their names.
        rows: Of the test images in their data set, int64 ``[M]``.
        target: Labels of the test images, int64 ``[M]``.
        student: The student's logits, float32 ``[M, C]``.
        teacher: The teacher's; None where there is none.
        parts: Logits of the student's heads, branches, peers or generations.
        missed: Images that the student gets wrong and the teacher right.
        unsure: Images of which the teacher, or without one the student, is least sure.
        student_profile: What the student costs.
        teacher_profile: What the teacher costs; None where no frozen network answers.
        cka: Where features are matched; in words why not, where they cannot be compared.
        soft_targets: Whether soft targets are learnt.
        temperature: That they are learnt at, of the first term that has a fixed one; None where none has.
        best_top1: Test top-1 of the best checkpoint in [0, 1]; None where the run kept none.
    """

    run: RunFolder
    config: Mapping[str, Any]
    classes: Sequence[str]
    rows: Tensor
    target: Tensor
    student: Tensor
    teacher: Tensor | None
    parts: Mapping[str, Tensor]
    missed: Sequence[Notable]
    unsure: Sequence[Notable]
    student_profile: Profile
    teacher_profile: Profile | None
    cka: Cka | str | None
    soft_targets: bool
    temperature: float | None
    best_top1: float | None = None


@runtime_checkable
class HasTemperatures(Protocol):
    """A loss that softens what it compares in several ways."""

    temperatures: object


def learns_soft_targets(criteria: Criteria) -> bool:
    """Whether a term softens the teacher's logits: at one temperature or several, fixed or learnt."""
    asking = [term.loss for term in criteria.terms.values() if LOGITS in term.teacher_taps()]
    return any(isinstance(loss, HasTemperature | HasTemperatures) for loss in asking)


def frozen_networks(module: Distiller) -> list[tuple[FrozenTeacher, nn.Module]]:
    """The frozen teachers that answer beside the student, each with its network."""
    teacher = module.present_teacher
    members = teacher.members().values() if teacher is not None else ()
    frozen = [each for each in members if isinstance(each, FrozenTeacher)]
    return [(each, each.network) for each in frozen if each.network is not None]


def matches_features(module: Distiller) -> bool:
    """Whether a term compares more than logits."""
    return any(set(term.teacher_taps()) - {LOGITS} for term in module.criteria.terms.values())


class Examiner(Onlooker):
    """Looks on while a run is tested; `examined` is what it saw.

    Args:
        run: Its folder.
        profiler: Measures what networks cost.
    """

    def __init__(self, run: RunFolder, profiler: Profiler) -> None:
        self.run, self.profiler = run, profiler
        self._answers: list[Answers] = []
        self._images: list[Tensor] = []
        self._costs: tuple[Profile, Profile | None] | None = None
        self._cka: Cka | str | None = None

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Learn what the data is, and how the student learns from the teacher."""
        module, views = cast(Distiller, pl_module), views_of(trainer)
        self._notable = NotableImages(views.mean, views.std, MISSED, UNSURE)
        self._classes = class_names(getattr(trainer, "datamodule", None), cast(int, module.num_classes))
        self._soft_targets = learns_soft_targets(module.criteria)
        stated = temperatures(module.criteria).values()
        self._temperature = next((each for each in stated if each is not None), None)

    def note(self, answers: Answers) -> None:
        """Keep the answers, and the images that are worth a look."""
        self._notable.note(answers)
        if sum(map(len, self._images)) < CKA_IMAGES:
            self._images.append(answers.batch.image)
        seen, index = sum(len(each.student) for each in self._answers), answers.batch.index
        rows = torch.arange(seen, seen + len(answers.student)) if index is None else index.cpu()
        self._answers.append(
            Answers(
                Batch({}, answers.batch.target.cpu(), rows),
                answers.student.float().cpu(),
                {name: part.float().cpu() for name, part in answers.parts.items()},
                None if answers.teacher is None else answers.teacher.float().cpu(),
            )
        )

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the networks, while an average is still in the student's place."""
        module = cast(Distiller, pl_module)
        student, teachers = cast(nn.Module, module.student), frozen_networks(module)
        channels, height, width = self._images[0].shape[1:]
        each = [self.profiler(network, teacher.image_shape) for teacher, network in teachers]
        self._costs = self.profiler(student, (channels, height, width)), together(each) if each else None
        if len(teachers) == 1 and matches_features(module):
            self._cka = self._compared(module.fresh_student(), student, *teachers[0])

    def _compared(self, before: nn.Module, after: nn.Module, teacher: FrozenTeacher, network: nn.Module) -> Cka | str:
        images = torch.cat(self._images)[:CKA_IMAGES].cpu().float()
        its_images, its_network = teacher.adapter(images), copy.deepcopy(network).cpu().float()
        students = before, copy.deepcopy(after).cpu().float()
        try:
            return Cka(*(stage_cka(student, its_network, images, its_images) for student in students))
        except ValueError as reason:
            return str(reason)

    def examined(self) -> Examined:
        """What was seen.

        Raises:
            ValueError: if the test had no images.
        """
        if not self._answers or self._costs is None:
            raise ValueError(f"{self.run.path}: the test has no images")
        first = self._answers[0]
        return Examined(
            self.run,
            yaml.safe_load(self.run.config.read_text()),
            self._classes,
            torch.cat([cast(Tensor, each.batch.index) for each in self._answers]),
            torch.cat([each.batch.target for each in self._answers]),
            torch.cat([each.student for each in self._answers]),
            torch.cat(told) if (told := [each.teacher for each in self._answers if each.teacher is not None]) else None,
            {name: torch.cat([each.parts[name] for each in self._answers]) for name in first.parts},
            self._notable.missed,
            self._notable.unsure,
            *self._costs,
            self._cka,
            self._soft_targets,
            self._temperature,
        )
