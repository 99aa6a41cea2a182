"""What a student's features are worth without any training on labels: nearest neighbours among the training images."""

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

from kd_lightning.batch import Batch
from kd_lightning.models.tap_plan import plan, several
from kd_lightning.models.taps import tapped
from kd_lightning.ranks import gathered


@runtime_checkable
class ServesSplits(Protocol):
    """A data module that shows the training images as they are."""

    def plan(self, split: Any, train: bool) -> Any:
        """The epochs of a split on this rank, shuffled and augmented where ``train``."""

    def loader(self, split: Any, plan: Any, device: torch.device) -> Iterable[object]:
        """The loader of a split."""


def training_images(data: object, device: torch.device) -> Iterable[object]:
    """Batches of this rank's share of the training images, not augmented.

    Raises:
        ValueError: if the data module does not offer them.
    """
    if not isinstance(data, ServesSplits):
        raise ValueError("knn needs the training images as they are: use a datamodule of this package, or leave it out")
    return data.loader("train", data.plan("train", False), device)


def votes(features: Tensor, bank: Tensor, labels: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    """Votes ``[N, C]`` of the k nearest neighbours by cosine, each weighing exp(cosine / T).

    Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, sec. 3.4.

    Args:
        features: ``[N, D]``, of length 1.
        bank: ``[M, D]``, of length 1.
        labels: Classes of the bank, int64 ``[M]``.
        classes: C.
        k: Neighbours; all of the bank where it has fewer.
        temperature: T > 0.
    """
    cosine, nearest = (features @ bank.T).topk(min(k, len(bank)), dim=1)
    found = torch.zeros(len(features), classes, dtype=cosine.dtype, device=cosine.device)
    return found.scatter_add_(1, labels[nearest], (cosine / temperature).exp())


class NearestNeighbours(nn.Module):
    """Top-1 of the k nearest training images, logged as ``val/knn_top1``; it costs a pass over them at each validation.

    Args:
        k: Neighbours, >= 1.
        temperature: T > 0 of their weights.
        tap: Whose output is compared, by cosine; a map is flattened.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, k: int = 20, temperature: float = 0.07, tap: str = "embedding") -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"k must be >= 1, got {k}")
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        self.k, self.temperature, self.tap = k, temperature, tap
        self.top1 = MeanMetric()
        self._bank: tuple[Tensor, Tensor] | None = None

    def prepare(self, student: nn.Module, image_shape: tuple[int, int, int], num_classes: int) -> None:
        """Find the tap in the student.

        Raises:
            ValueError: if it stands for nothing, or for several things.
        """
        self._plan, self._classes = plan(student, [self.tap], image_shape), num_classes
        if isinstance(self._plan.names[self.tap], list):
            raise ValueError(f"knn.tap must be one tap, but {self.tap!r} is several")

    @torch.no_grad()
    def features(self, student: nn.Module, image: Tensor) -> Tensor:
        """Features of length 1, float32 ``[N, D]``."""
        with tapped(student, self._plan.submodules()) as taps:
            student(image)
        (value,) = several(self._plan.picked(taps)[self.tap])
        return F.normalize(value.flatten(1).float(), dim=1)

    def remember(self, student: nn.Module, batches: Iterable[Batch]) -> None:
        """Take in the training images, of which each rank shows its share; in eval mode."""
        rows = [(self.features(student, batch.image), batch.target) for batch in batches if len(batch)]
        features, labels = (torch.cat(part) for part in zip(*rows, strict=True))
        self._bank = gathered(features), gathered(labels)

    def update(self, student: nn.Module, batch: Batch) -> None:
        """Let the neighbours of a batch vote; nothing before `remember`."""
        if self._bank is None or not len(batch):
            return
        decided = votes(self.features(student, batch.image), *self._bank, self._classes, self.k, self.temperature)
        self.top1.update((decided.argmax(dim=1) == batch.target).float())

    def compute(self) -> dict[str, float]:
        """``knn_top1`` in [0, 1] over all ranks, and a fresh start; nothing before `remember`."""
        if self._bank is None:
            return {}
        self._bank = None
        top1 = float(self.top1.compute())
        self.top1.reset()
        return {"knn_top1": top1}
