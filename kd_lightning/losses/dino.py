"""DINO: the student predicts, from every view, what its own average says of the global ones; nobody needs labels."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from kd_lightning.length import Length, check_length, epochs_of
from kd_lightning.losses.base import Features, Loss, Taps
from kd_lightning.losses.logits import check_temperature
from kd_lightning.losses.precision import in_float32, precise
from kd_lightning.ranks import summed


@in_float32
def dino(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    centre: Tensor,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
) -> Tensor:
    """Mean over pairs of different views of H(softmax((t - c) / T_t), softmax(s / T_s)), mean over the batch.

    Source: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, eq. 1 to 3; their
    code takes the mean over the pairs.

    Args:
        student: Outputs ``[N, K]`` for each view, those of the teacher's views first.
        teacher: Outputs ``[N, K]`` for each global view; constants here.
        centre: c ``[K]``.
        student_temperature: T_s > 0.
        teacher_temperature: T_t > 0.

    Raises:
        ValueError: if there is no pair of different views.
    """
    if len(student) < max(len(teacher), 2):
        raise ValueError(
            f"the student must look at the teacher's {len(teacher)} views and at 2 at least, got {len(student)}"
        )
    targets = [((view - centre) / teacher_temperature).softmax(dim=1).detach() for view in teacher]
    answers = [(view / student_temperature).log_softmax(dim=1) for view in student]
    pairs = [
        -(target * answer).sum(dim=1).mean()
        for which, target in enumerate(targets)
        for other, answer in enumerate(answers)
        if other != which
    ]
    return torch.stack(pairs).mean()


class DINO(Loss):
    """H(softmax((t - c) / T_t), softmax(s / T_s)), mean over the pairs of different views.

    The labels are not looked at. The centre c <- m c + (1 - m) mean(t), over the samples of all ranks, keeps one output
    from winning always; the low T_t keeps the outputs from being all the same. The teacher is to be a
    `MovingAverageTeacher`, with ``batch_statistics`` where the networks have batch normalisation: answers by averaged
    statistics soon are the same for all images. The term's ``teacher_views`` are the global views, its ``views`` all of
    them, the global ones first.

    Source: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, eq. 1 to 4.

    Args:
        student_temperature: T_s > 0.
        teacher_temperature: T_t > 0, from the end of the warm-up.
        warmup_temperature: T_t > 0 in the first epoch.
        warmup_epochs: Over which T_t goes from one to the other, linearly, >= 0; a float is a share of the
            training in [0, 1].
        momentum: m of the centre, in [0, 1).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"epoch", "epochs"})
    student_tap: ClassVar[Taps] = "projection"
    teacher_tap: ClassVar[Taps | None] = "projection"

    def __init__(
        self,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        warmup_temperature: float = 0.04,
        warmup_epochs: Length = 0,
        momentum: float = 0.9,
    ) -> None:
        super().__init__()
        self.student_temperature = check_temperature(student_temperature)
        self.teacher_temperature = check_temperature(teacher_temperature)
        self.warmup_temperature = check_temperature(warmup_temperature)
        self.warmup_epochs = check_length("warmup_epochs", warmup_epochs, least=0)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        self.momentum = momentum
        self.centre: Tensor | None = None

    def temperature(self, epoch: int, epochs: int | None = None) -> float:
        """T_t in an epoch, counted from 0, of so many."""
        warmup = epochs_of(self.warmup_epochs, epochs)
        share = min(epoch / warmup, 1.0) if warmup else 1.0
        return self.warmup_temperature + share * (self.teacher_temperature - self.warmup_temperature)

    def forward(
        self, student: Features, teacher: Features, target: Tensor, epoch: int, epochs: int | None = None
    ) -> Tensor:
        """The loss of outputs ``[N, K]`` for each view of both; in training the centre moves after it.

        Raises:
            ValueError: if the student did not look at several views.
        """
        if isinstance(student, Tensor):
            raise ValueError("DINO needs several views: list them in the term's views")
        teacher = [teacher] if isinstance(teacher, Tensor) else teacher
        first = precise(teacher[0])
        centre = torch.zeros_like(first[0]) if self.centre is None else self.centre.to(first)
        value = dino(student, teacher, centre, self.student_temperature, self.temperature(epoch, epochs))
        if self.training:
            self.centre = self._moved(centre, torch.cat([view.to(first) for view in teacher]))
        return value

    def _moved(self, centre: Tensor, rows: Tensor) -> Tensor:
        total = summed(torch.cat([rows.sum(dim=0), rows.new_tensor([float(len(rows))])]))
        return self.momentum * centre + (1 - self.momentum) * total[:-1] / total[-1]

    def get_extra_state(self) -> dict[str, Tensor]:
        """The centre, where there is one yet."""
        return {} if self.centre is None else {"centre": self.centre}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take it up."""
        self.centre = state.get("centre")
