"""The loss contract: what a distillation loss is told, and what it may ask for."""

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

Taps = str | Sequence[str]
Shapes = Sequence[tuple[int, ...]]

NEEDS = frozenset({"index", "number", "epoch"})


class Loss(nn.Module):
    """One way to match a teacher, in plain torch: it knows nothing of models, weights or logging.

    ``forward(student, teacher, target, **needed)`` returns a scalar. ``student`` and ``teacher`` are what the taps
    give: a Tensor for one tap, a list of Tensors for several. A plain ``nn.Module`` with the same forward serves too.

    Attributes:
        needs: Further named arguments of ``forward``, among `NEEDS`: ``index`` and ``number`` (int64 ``[N]``, see
            `Batch`), ``epoch`` (int, counted from 0).
        student_tap: What is tapped of the student unless the YAML says otherwise.
        teacher_tap: The same of the teacher; None where no teacher is asked.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    student_tap: ClassVar[Taps] = "logits"
    teacher_tap: ClassVar[Taps | None] = "logits"

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Make adapters for the probed shapes, ``[N, ...]`` of each tap, before the optimizer is made."""
