"""The distillation token of DeiT: a student with two heads, one for the labels and one for the teacher."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Literal, cast

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from kd_lightning.batch import Batch
from kd_lightning.distillers.base import Distiller
from kd_lightning.distillers.criteria import DEFAULT, Term
from kd_lightning.distillers.fully_sharded import mesh_of, shard_trained
from kd_lightning.distillers.optimizing import Decayed
from kd_lightning.distillers.teaching import (
    OF_THE_TEACHER,
    answers,
    begin,
    examine_first,
    known_of,
    require_question,
    set_up,
)
from kd_lightning.distillers.unlabelled import check_unlabelled
from kd_lightning.models import NetworkLike, Outputs, TapPlan, Teacher, Views
from kd_lightning.models.tap_plan import plan, several
from kd_lightning.models.taps import LOGITS, tapped
from kd_lightning.models.two_heads import (
    CLASS_HEAD,
    DISTILLATION_HEAD,
    HEADS,
    INFERENCES,
    Inference,
    combined,
    prepare_heads,
    two_heads,
)

BOTH: Mapping[str, Inference] = {"both_softmax": "softmax", "both_logits": "logits"}


def with_heads(criteria: Mapping[str, Term]) -> dict[str, Term]:
    """Terms that look at the student's logits by default look at one head: the distillation head to ask the teacher."""
    return {
        name: replace(term, student=DISTILLATION_HEAD if term.teacher_taps() else CLASS_HEAD)
        if term.student == DEFAULT and term.student_taps() == [LOGITS]
        else term
        for name, term in criteria.items()
    }


class DeiTDistiller(Distiller):
    """A student with a class head and a distillation head that learns from the labels and from a frozen teacher.

    Source: Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML 2021.

    A term without a teacher looks at the class head, a term that asks the teacher at the distillation head; its
    ``student`` says otherwise: ``class_head``, ``distillation_head``, ``logits`` for both as ``inference`` has them,
    or any other tap. Hard-label distillation, the paper's best, is 0.5 `CrossEntropy` + 0.5 `HardLabel` (eq. 3);
    soft distillation is 0.9 `CrossEntropy` + 0.1 `SoftTarget` with a temperature of 3 (eq. 2). The test reports each
    head and both means beside the student's own answer.

    Args:
        student: A recipe (in Python also a module) of a network that offers ``set_distilled_training``, as timm's deit,
            pit, levit, efficientformer, repvit and others do.
        teacher: Who answers, for instance a `FrozenTeacher`.
        criteria: Name -> term; their weighted sum is the loss.
        optimizer: Makes the optimizer from parameter groups.
        inference: The student's own answer: ``softmax``, the mean of both heads' softmaxes, as the paper has it;
            ``logits``, the mean of their logits, as the reference code has it; ``class`` or ``distillation``, that head
            alone.
        scheduler: Makes a learning-rate schedule from the optimizer; None keeps the rate.
        scheduler_interval: Whether the schedule advances with epochs or with optimizer steps.
        weight_decay_on: ``all`` parameters, or ``matrices`` only (no biases and norms, as timm does).
        num_classes: Only where no data module says it.
        channels_last: Keep the student's maps in channels_last.
    """

    def __init__(
        self,
        student: NetworkLike,
        teacher: Teacher,
        criteria: dict[str, Term],
        optimizer: OptimizerCallable,
        inference: Inference = "softmax",
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        weight_decay_on: Decayed = "all",
        num_classes: int | None = None,
        channels_last: bool = True,
    ) -> None:
        super().__init__(
            student,
            with_heads(criteria),
            optimizer,
            scheduler,
            scheduler_interval,
            weight_decay_on,
            num_classes,
            channels_last,
        )
        if inference not in INFERENCES:
            raise ValueError(f"inference must be one of {', '.join(INFERENCES)}, got {inference!r}")
        self.teacher, self.inference = teacher, inference
        require_question(self.criteria)

    # The heads

    def planned(self, student: nn.Module, image_shape: tuple[int, int, int]) -> TapPlan:
        """Where the student's taps are; the heads are what it returns.

        Raises:
            ValueError: if the student has no two heads.
        """
        prepare_heads(student, image_shape)
        inner = plan(student, [tap for tap in self.criteria.student_taps() if tap not in HEADS], image_shape)
        shapes = {head: several(inner.shapes[LOGITS])[0] for head in HEADS}
        return TapPlan(inner.names, {**inner.shapes, **shapes})

    def _heads(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return two_heads(self._student(), image.to(memory_format=self.memory_format))

    def _answer(self, image: Tensor) -> Outputs:
        with tapped(self._student(), self._submodules) as taps:
            heads = self._heads(image)
        return Outputs(combined(*heads, self.inference), self._plan.picked(taps) | dict(zip(HEADS, heads, strict=True)))

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``[N, C]`` of the heads that ``inference`` says, for images ``[N, C, H, W]``."""
        return combined(*self._heads(image), self.inference)

    def parts(self) -> Sequence[str]:
        """Each head, and both by the mean of softmaxes and by the mean of logits."""
        return *HEADS, *BOTH

    def examined(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``[N, C]`` of the student as ``inference`` says, of each head, and of both."""
        heads = self._heads(image)
        parts = dict(zip(HEADS, heads, strict=True))
        return combined(*heads, self.inference), parts | {name: combined(*heads, way) for name, way in BOTH.items()}

    # The teacher

    @property
    def present_teacher(self) -> Teacher:
        """The teacher answers in the test too."""
        return self.teacher

    def prepare(self, num_classes: int, views: Views) -> TapPlan:
        """Set up the teacher with the taps that the criteria ask for."""
        return set_up(self.teacher, self.criteria, num_classes, views)

    def shard(self) -> None:
        """Spread the student, the adapters and the teacher over the ranks."""
        shard_trained(self._student(), self.criteria, self.trainer.strategy)
        self.teacher.shard(mesh_of(self.trainer.strategy))

    def fact(self, need: str, term: Term) -> object:
        """What a loss needs to know of the teacher, or of the run.

        Raises:
            ValueError: if it is not known.
        """
        if need == "student_classifier":
            raise ValueError("the loss needs the student's classifier, but a student with two heads has two")
        return known_of(self.teacher, need, term) if need in OF_THE_TEACHER else super().fact(need, term)

    def teach(self, batch: Batch, views: Set[str]) -> dict[str, Outputs]:
        """The teacher's answer to each of these views; see `answers`."""
        return answers(self.teacher, batch, views, self.trainer.training)

    def on_fit_start(self) -> None:
        """Bring the teacher to the student's device, and tell the losses what they need to know."""
        begin(self.teacher, self.trainer, self.device)
        super().on_fit_start()

    def on_test_start(self) -> None:
        """Bring the teacher to the student's device."""
        self.teacher.to(self.device)

    def on_train_start(self) -> None:
        """Show the teacher's top-1, and stop here if it knows nothing.

        Raises:
            ValueError: if it is near chance, or not what it is expected to be, or labels are needed and there are none.
        """
        check_unlabelled(self.trainer, self.criteria, self.teacher)
        examine_first(self.teacher, self.trainer, cast(int, self.num_classes), self._over_ranks)
