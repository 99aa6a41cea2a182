"""Notable images: those of a test that are worth a look."""

from collections.abc import Sequence
from heapq import nlargest
from typing import NamedTuple

import torch
from torch import Tensor

from kd_lightning.distillers.evaluating import Answers


class Notable(NamedTuple):
    """One test image as a person sees it, uint8 ``[C, H, W]``; logits ``[C]`` of the student and the teacher."""

    row: int
    image: Tensor
    target: int
    student: Tensor
    teacher: Tensor | None


def visible(image: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """A normalised image ``[C, H, W]`` as a person sees it, uint8; None for what it was not normalised by."""
    shift, scale = (torch.tensor(figures).view(-1, 1, 1) for figures in (mean or (0.0,), std or (1.0,)))
    return ((image.float().cpu() * scale + shift) * 255).round().clamp(0, 255).byte()


class NotableImages:
    """Keeps the images that the student misses and the teacher gets right, and those of which one is least sure.

    Args:
        mean: What each channel is normalised by; None if it is not.
        std: The same for the standard deviation.
        missed: At most so many of the first kind; without a teacher all that the student misses count.
        unsure: So many of the second, by the entropy of the teacher's answer, or without one the student's.
    """

    def __init__(
        self, mean: Sequence[float] | None, std: Sequence[float] | None, missed: int = 24, unsure: int = 12
    ) -> None:
        self.mean, self.std = mean, std
        self.most_missed, self.most_unsure = missed, unsure
        self.missed: list[Notable] = []
        self._unsure: list[tuple[float, Notable]] = []
        self._seen = 0

    @property
    def unsure(self) -> list[Notable]:
        """The least sure first."""
        return [notable for _, notable in self._unsure]

    def note(self, answers: Answers) -> None:
        """Look at the answers to a batch."""
        target, student, teacher = answers.batch.target, answers.student.float(), answers.teacher
        wrong = student.argmax(1) != target
        if teacher is not None:
            wrong &= teacher.argmax(1) == target
        self.missed += self._shown(answers, wrong.nonzero()[: self.most_missed - len(self.missed), 0])
        probabilities = (student if teacher is None else teacher.float()).softmax(dim=1)
        entropy: Tensor = torch.special.entr(probabilities).sum(dim=1)
        found = entropy.topk(min(self.most_unsure, len(entropy)))
        pairs = zip(found.values.tolist(), self._shown(answers, found.indices), strict=True)
        self._unsure = nlargest(self.most_unsure, [*self._unsure, *pairs], key=lambda pair: (pair[0], -pair[1].row))
        self._seen += len(target)

    def _shown(self, answers: Answers, positions: Tensor) -> list[Notable]:
        (batch, teacher), shown = (answers.batch, answers.teacher), []
        for at in positions.tolist():
            row = self._seen + at if batch.index is None else int(batch.index[at])
            image = visible(batch.image[at], self.mean, self.std)
            told = None if teacher is None else teacher[at].float().cpu()
            shown.append(Notable(row, image, int(batch.target[at]), answers.student[at].float().cpu(), told))
        return shown
