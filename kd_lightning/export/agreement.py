"""How far an exported file answers as its network does, on images."""

from collections.abc import Callable, Iterable
from typing import NamedTuple, Self

import torch
from torch import Tensor

from kd_lightning.batch import Batch

Answer = Callable[[Tensor], Tensor]
AT_A_TIME = 64  # images
CLOSE = 1e-3  # of the largest logit: far above rounding, far below another network


class Agreement(NamedTuple):
    """Two answers to the same images.

    Attributes:
        images: How many.
        same: On how many both decide the same.
        difference: Largest absolute difference of two logits.
        scale: Largest absolute logit.
    """

    images: int
    same: int
    difference: float
    scale: float

    @property
    def close(self) -> bool:
        """Whether the logits differ by rounding alone; not so if one is no number."""
        return self.difference <= CLOSE * max(1.0, self.scale)

    def required(self, name: str) -> Self:
        """Itself, if a file of that name answers as its network does.

        Raises:
            ValueError: if it decides otherwise on an image, or differs by more than rounding.
        """
        if self.same < self.images or not self.close:
            raise ValueError(f"{name} does not answer as the network does: {self}; no file was written")
        return self

    def __str__(self) -> str:
        return f"{self.same} of {self.images} decisions the same, logits differ by {self.difference:.2g} at most"


@torch.no_grad()
def answered(answer: Answer, images: Tensor) -> Tensor:
    """Logits ``[N, K]`` to images ``[N, C, H, W]``, asked a few at a time."""
    return torch.cat([answer(few) for few in torch.split(images, AT_A_TIME)])


def compare(answers: Tensor, expected: Tensor) -> Agreement:
    """How far logits ``[N, K]`` are those that are expected."""
    same = int((answers.argmax(dim=1) == expected.argmax(dim=1)).sum())
    return Agreement(len(expected), same, float((answers - expected).abs().max()), float(expected.abs().max()))


@torch.no_grad()
def top1(answer: Answer, batches: Iterable[Batch]) -> float:
    """Top-1 in [0, 1] of an answer over labelled batches."""
    right = total = 0
    for batch in batches:
        right += int((answer(batch.image).argmax(dim=1) == batch.target).sum())
        total += len(batch)
    return right / total
