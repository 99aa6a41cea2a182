"""A run, examined: what its student and its teacher answer to the test images, and what they cost."""

import copy
from collections.abc import Mapping, Sequence
from heapq import nlargest
from typing import Any, NamedTuple, cast

import lightning.pytorch as pl
import torch
import yaml
from torch import Tensor, nn

from kd_lightning.batch import Batch
from kd_lightning.distillers import Distiller
from kd_lightning.distillers.evaluating import Answers
from kd_lightning.models import FrozenTeacher
from kd_lightning.models.taps import LOGITS
from kd_lightning.report.cka import stage_cka
from kd_lightning.report.dark_knowledge import entropy
from kd_lightning.report.profile import Profile, Profiler, together
from kd_lightning.run_folder import RunFolder

MISSED, UNSURE = 24, 6  # so many images of each kind are kept
CKA_IMAGES = 256  # the first of the test set


class Shown(NamedTuple):
    """One test image, as a person sees it: uint8 ``[C, H, W]``; logits ``[C]`` of the student and the teacher."""

    row: int
    image: Tensor
    target: int
    student: Tensor
    teacher: Tensor | None


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
        target: Labels of the test images, int64 ``[M]``.
        student: The student's logits, float32 ``[M, C]``.
        teacher: The teacher's; None where there is none.
        parts: Logits of the student's heads, branches, peers or generations.
        missed: Images that the student gets wrong and the teacher right.
        unsure: Images of which the teacher, or without one the student, is least sure.
        student_profile: What the student costs.
        teacher_profile: What the teacher costs; None where no frozen network answers.
        cka: Where features are matched.
        best_top1: Test top-1 of the best checkpoint in [0, 1]; None where the run kept none.
    """

    run: RunFolder
    config: Mapping[str, Any]
    classes: Sequence[str]
    target: Tensor
    student: Tensor
    teacher: Tensor | None
    parts: Mapping[str, Tensor]
    missed: Sequence[Shown]
    unsure: Sequence[Shown]
    student_profile: Profile
    teacher_profile: Profile | None
    cka: Cka | None
    best_top1: float | None = None


def visible(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised images ``[..., C, H, W]`` as a person sees them, uint8."""
    shape = (-1, 1, 1)
    pixels = image.float().cpu() * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    return pixels.mul(255).round().clamp(0, 255).byte()


def frozen_networks(module: Distiller) -> list[tuple[FrozenTeacher, nn.Module]]:
    """The frozen teachers that answer beside the student, each with its network."""
    teacher = module.present_teacher
    members = teacher.members().values() if teacher is not None else ()
    frozen = [each for each in members if isinstance(each, FrozenTeacher)]
    return [(each, each.network) for each in frozen if each.network is not None]


def matches_features(module: Distiller) -> bool:
    """Whether a term compares more than logits."""
    return any(set(term.teacher_taps()) - {LOGITS} for term in module.criteria.terms.values())


class Examiner(pl.Callback):
    """Looks on while a run is tested; `examined` is what it saw.

    Args:
        run: Its folder.
        profiler: Measures what networks cost.
    """

    def __init__(self, run: RunFolder, profiler: Profiler) -> None:
        self.run, self.profiler = run, profiler
        self._answers: list[Answers] = []
        self._missed: list[Shown] = []
        self._unsure: list[tuple[float, Shown]] = []
        self._images: list[Tensor] = []
        self._costs: tuple[Profile, Profile | None] | None = None
        self._cka: Cka | None = None

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let runs pass whose scheme is this package's.

        Raises:
            ValueError: for another one.
        """
        if not isinstance(pl_module, Distiller):
            raise ValueError(f"{self.run.path}: a report is of a Distiller's run, got a {type(pl_module).__name__}")
        data: Any = getattr(trainer, "datamodule", None)
        self._mean, self._std, self._classes = data.mean, data.std, list(data.classes)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the answers, and the images that are worth a look."""
        if not isinstance(outputs, Answers):
            return
        image = outputs.batch.image
        if sum(map(len, self._images)) < CKA_IMAGES:
            self._images.append(image)
        kept = Answers(
            Batch({}, outputs.batch.target.cpu(), outputs.batch.index),
            outputs.student.float().cpu(),
            {name: part.float().cpu() for name, part in outputs.parts.items()},
            None if outputs.teacher is None else outputs.teacher.float().cpu(),
        )
        self._note(kept, image, sum(len(each.student) for each in self._answers))
        self._answers.append(kept)

    def _note(self, answers: Answers, image: Tensor, before: int) -> None:
        index, target = answers.batch.index, answers.batch.target

        def shown(position: int) -> Shown:
            row = before + position if index is None else int(index[position])
            told = None if answers.teacher is None else answers.teacher[position]
            seen = visible(image[position], self._mean, self._std)
            return Shown(row, seen, int(target[position]), answers.student[position], told)

        least = entropy(answers.student if answers.teacher is None else answers.teacher, temperature=1.0)
        found = least.topk(min(UNSURE, len(least)))
        candidates = [(float(bits), shown(int(at))) for bits, at in zip(found.values, found.indices, strict=True)]
        self._unsure = nlargest(UNSURE, [*self._unsure, *candidates], key=lambda pair: (pair[0], -pair[1].row))
        if answers.teacher is not None:
            wrong = (answers.student.argmax(1) != target) & (answers.teacher.argmax(1) == target)
            self._missed += [shown(int(at)) for at in wrong.nonzero()[: MISSED - len(self._missed), 0]]

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the networks, while an average is still in the student's place."""
        assert isinstance(pl_module, Distiller)  # `on_test_start` has seen to it
        student, teachers = cast(nn.Module, pl_module.student), frozen_networks(pl_module)
        channels, height, width = self._images[0].shape[1:]
        each = [self.profiler(network, teacher.image_shape) for teacher, network in teachers]
        self._costs = self.profiler(student, (channels, height, width)), together(each) if each else None
        if len(teachers) == 1 and matches_features(pl_module):
            self._cka = self._compared(pl_module.fresh_student(), student, *teachers[0])

    def _compared(self, before: nn.Module, after: nn.Module, teacher: FrozenTeacher, network: nn.Module) -> Cka | None:
        images = torch.cat(self._images)[:CKA_IMAGES].cpu().float()
        its_images, its_network = teacher.adapter(images), copy.deepcopy(network).cpu().float()
        first, last = (
            stage_cka(student, its_network, images, its_images)
            for student in (before, copy.deepcopy(after).cpu().float())
        )
        return None if first is None or last is None else Cka(first, last)

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
            torch.cat([each.batch.target for each in self._answers]),
            torch.cat([each.student for each in self._answers]),
            torch.cat(told) if (told := [each.teacher for each in self._answers if each.teacher is not None]) else None,
            {name: torch.cat([each.parts[name] for each in self._answers]) for name in first.parts},
            self._missed,
            [shown for _, shown in self._unsure],
            *self._costs,
            self._cka,
        )
