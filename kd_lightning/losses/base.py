"""The loss contract: what a distillation loss is told, and what it may ask for."""

from collections.abc import Callable, Sequence
from typing import ClassVar, TypeAlias

from torch import Tensor, nn

Taps = str | Sequence[str]
Shapes = Sequence[tuple[int, ...]]
Features: TypeAlias = Tensor | Sequence[Tensor]
Head: TypeAlias = Callable[[Tensor], Tensor]
Norms: TypeAlias = Sequence[tuple[Tensor, Tensor]]

OF_THE_BATCH = frozenset({"index", "number", "epoch"})
OF_THE_RUN = frozenset({"epochs", "train_targets", "teacher_classifier", "student_classifier", "teacher_norms"})
MAY_BE_UNKNOWN = frozenset({"epochs"})
NEEDS = OF_THE_BATCH | OF_THE_RUN


class Loss(nn.Module):
    """One way to match a teacher, in plain torch: it knows nothing of models, weights or logging.

    ``forward(student, teacher, target, **needed)`` returns a scalar. ``student`` and ``teacher`` are what the taps
    give: a Tensor for one tap, a list of Tensors for several. A plain ``nn.Module`` with the same forward serves too.
    On shapes that match, a loss that was not built is its bare formula, without adapters.

    Attributes:
        needs: Further named arguments of ``forward``, among `NEEDS`:
            ``index`` and ``number``: int64 ``[N]``, see `Batch`;
            ``epoch``: int, counted from 0;
            ``epochs``: int, of the whole training (where there are generations, of one); None where it is not known;
            ``train_targets``: class indices of the whole training set by row, int64 ``[M]``;
            ``student_classifier`` and ``teacher_classifier``: functions from embeddings ``[..., D]`` to logits
            ``[..., C]``; the teacher's is frozen, and gradients pass through both;
            ``teacher_norms``: for each of the teacher's taps before an activation, mean and standard deviation ``[D]``
            of its channels as the batch normalisation in front sets them.
        student_tap: What is tapped of the student unless the YAML says otherwise.
        teacher_tap: The same of the teacher; None where no teacher is asked.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    student_tap: ClassVar[Taps] = "logits"
    teacher_tap: ClassVar[Taps | None] = "logits"

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Make adapters for the probed shapes, ``[N, ...]`` of each tap, before the optimizer is made."""

    def notice(self, samples: int) -> str:
        """What a user should know before training on so many samples, for instance the memory needed; or nothing."""
        return ""
