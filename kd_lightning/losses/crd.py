"""Contrastive representation distillation, with a memory bank of all training samples or within the batch."""

import math
from typing import ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.losses.base import Features, Loss, Shapes, Taps
from kd_lightning.losses.features import single, unit
from kd_lightning.losses.logits import check_temperature, largest_class
from kd_lightning.losses.precision import in_float32, precise
from kd_lightning.ranks import gathered, summed
from kd_lightning.seeds import hashed, run_seed, seeded

EPS = 1e-7
LOWEST_TEMPERATURE = 0.02  # below, exp(1 / T) summed over a batch leaves float32


class ByClass(NamedTuple):
    """A training set of M samples sorted by its C classes.

    Attributes:
        targets: Class of each row, int64 ``[M]``.
        order: Rows, class after class, int64 ``[M]``.
        sizes: Rows of each class, int64 ``[C]``.
        starts: Where each class begins in ``order``, int64 ``[C]``.
    """

    targets: Tensor
    order: Tensor
    sizes: Tensor
    starts: Tensor

    @classmethod
    def of(cls, train_targets: Tensor) -> Self:
        """Sorted by the classes of the training set, int64 ``[M]``.

        Raises:
            ValueError: if all samples are of one class.
        """
        sizes = torch.bincount(train_targets)
        if int(sizes.max()) == len(train_targets):
            raise ValueError("CRD needs negatives of other classes, but the training set has one class only")
        return cls(train_targets, train_targets.argsort(stable=True), sizes, sizes.cumsum(0) - sizes)


def negatives_of(index: Tensor, number: Tensor, samples: ByClass, count: int, seed: int) -> Tensor:
    """Rows of samples of other classes, int64 ``[N, count]``: functions of (seed, index, number), with repetition.

    Args:
        index: Rows of the samples, int64 ``[N]``.
        number: Which view each is, int64 ``[N]``.
        samples: The training set.
        count: Negatives for each sample.
        seed: Of the run.
    """
    label = samples.targets[index]
    size, start = samples.sizes[label][:, None], samples.starts[label][:, None]
    lanes = torch.arange(count, device=index.device)
    drawn = hashed(seed, "negatives", index[:, None], number[:, None], lanes) * (len(samples.order) - size) >> 32
    return samples.order[drawn + size * (drawn >= start)]


@in_float32
def contrast(scores: Tensor, samples: int, normalisation: Tensor) -> Tensor:
    """-[log h(positive) + sum log(1 - h(negative))], mean over the batch, h = x / (x + K / M + 1e-7), x = exp(s) / Z.

    Source: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, eq. 18 and 19.

    Args:
        scores: Similarity over temperature, ``[N, 1 + K]``; the positive first.
        samples: M, the size of the training set.
        normalisation: Z > 0, a scalar.
    """
    negatives = scores.shape[1] - 1
    noise = negatives / samples
    x = scores.exp() / normalisation
    positive = (x[:, 0] / (x[:, 0] + noise + EPS)).log()
    negative = (noise / (x[:, 1:] + noise + EPS)).log().sum(dim=1)
    return -(positive + negative).mean()


@in_float32
def in_batch_contrast(student: Tensor, teacher: Tensor, label: Tensor, temperature: float) -> Tensor:
    """Mean of both directions' -log softmax of the sample's own other side, among it and samples of other classes.

    Args:
        student: Unit vectors ``[N, D]``.
        teacher: Unit vectors ``[N, D]``.
        label: int64 ``[N]``.
        temperature: T > 0.
    """
    scores = student @ teacher.T / temperature
    same = label[:, None] == label[None]
    own = torch.eye(len(label), dtype=torch.bool, device=label.device)
    scores = scores.masked_fill(same & ~own, float("-inf"))
    which = torch.arange(len(label), device=label.device)
    return (F.cross_entropy(scores, which) + F.cross_entropy(scores.T, which)) / 2


@in_float32
def similarities(anchors: Tensor, bank: Tensor, rows: Tensor) -> Tensor:
    """Dot products ``[N, K]`` of anchors ``[N, D]`` with the rows, int64 ``[N, K]``, of a bank ``[M, D]``."""
    if rows.shape[1] * bank.shape[1] < len(bank):  # which of the two needs less memory
        return torch.einsum("nd,nkd->nk", anchors, bank[rows])
    return (anchors @ bank.T).gather(1, rows)


def embedding(shapes: Shapes, dim: int) -> nn.Module:
    """A linear embedding of one feature ``[N, ...]``, flattened.

    Raises:
        ValueError: if there is not one feature.
    """
    if len(shapes) != 1:
        raise ValueError(f"CRD needs one tap of each network, got {len(shapes)}")
    return nn.Sequential(nn.Flatten(1), nn.Linear(math.prod(shapes[0][1:]), dim))


class CRD(Loss):
    """Noise-contrastive estimation against a memory bank: -[log h(positive) + sum over negatives of log(1 - h)].

    h = x / (x + K / M + 1e-7), x = exp(s t / T) / Z, for the student's embeddings against the teacher's bank and the
    other way round; K negatives from other classes than the sample's, drawn by (seed, index, number); M training
    samples. Both banks and Z, which is set at the first step, are kept in the checkpoint; they are the same on all
    ranks. Mixed targets are refused: the bank has a row for a sample, and a mixed image is of two.

    Source: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, eq. 17 to 19, with the memory
    of the authors' code.

    Args:
        dim: Length of the embeddings, >= 1.
        negatives: K >= 1.
        temperature: T >= 0.02.
        momentum: Share of the old row when a bank is updated, in [0, 1).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"index", "number", "train_targets"})
    student_tap: ClassVar[Taps] = "embedding"
    teacher_tap: ClassVar[Taps | None] = "embedding"

    def __init__(
        self, dim: int = 128, negatives: int = 16384, temperature: float = 0.07, momentum: float = 0.5
    ) -> None:
        super().__init__()
        if dim < 1 or negatives < 1:
            raise ValueError(f"dim and negatives must be >= 1, got {dim} and {negatives}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        if check_temperature(temperature) < LOWEST_TEMPERATURE:
            raise ValueError(f"temperature must be >= {LOWEST_TEMPERATURE}, got {temperature}: exp(1 / T) overflows")
        self.dim, self.negatives, self.momentum, self.temperature = dim, negatives, momentum, temperature
        self.student_embedding: nn.Module = nn.Flatten(1)
        self.teacher_embedding: nn.Module = nn.Flatten(1)
        # Of student and teacher, [2, M, dim]. No buffer: DDP would broadcast it at every step.
        self.bank: Tensor | None = None
        self.constants: Tensor | None = None  # Z of both directions
        self._samples: tuple[Tensor, ByClass] | None = None

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Make a linear embedding of both networks' features."""
        self.student_embedding, self.teacher_embedding = embedding(student, self.dim), embedding(teacher, self.dim)

    def notice(self, samples: int) -> str:
        """The memory that the banks will take."""
        mega = 2 * samples * self.dim * 4 / 1e6
        return f"memory bank: 2 x {samples:,} x {self.dim} float32, {mega:,.0f} MB on the device and in each checkpoint"

    def forward(
        self,
        student: Features,
        teacher: Features,
        target: Tensor,
        index: Tensor,
        number: Tensor,
        train_targets: Tensor,
    ) -> Tensor:
        """The loss of one feature ``[N, ...]`` of each; in training, the banks take in what was seen."""
        if target.ndim != 1:
            raise ValueError("CRD cannot take mixed targets: its bank has a row for a sample; switch mixing off")
        s, t = single(student, teacher)
        s, t = (unit(precise(make(x))) for make, x in ((self.student_embedding, s), (self.teacher_embedding, t)))
        bank = self._ready_bank(len(train_targets), s)
        samples = self._sorted(train_targets, index.device)
        rows = torch.cat([index[:, None], negatives_of(index, number, samples, self.negatives, run_seed())], dim=1)
        scores = [similarities(a, b, rows) / self.temperature for a, b in ((s, bank[1]), (t, bank[0]))]
        constants = self.constants
        if constants is None:
            sums = summed(torch.stack([x.exp().sum() for x in scores] + [torch.tensor(float(rows.numel())).to(s)]))
            constants = sums[:2] / sums[2] * len(bank[0])
        if self.training:
            self.constants = constants
            self._update(bank, gathered(index), torch.stack([gathered(s), gathered(t)]))
        z = constants.to(s)
        return contrast(scores[0], len(bank[0]), z[0]) + contrast(scores[1], len(bank[0]), z[1])

    def _sorted(self, train_targets: Tensor, device: torch.device) -> ByClass:
        """The training set by class, sorted once, not at every step."""
        if self._samples is None or self._samples[0] is not train_targets or self._samples[1].order.device != device:
            self._samples = train_targets, ByClass.of(train_targets.to(device))
        return self._samples[1]

    def _ready_bank(self, samples: int, like: Tensor) -> Tensor:
        """The bank; a new one is uniform, with rows of a mean squared norm of 1.

        Raises:
            ValueError: if it is of another data set.
        """
        if self.bank is None:
            with seeded(run_seed(), "crd bank"):
                self.bank = (torch.rand(2, samples, like.shape[1]) * 2 - 1) * (3 / like.shape[1]) ** 0.5
        if self.bank.shape != (2, samples, like.shape[1]):
            raise ValueError(
                f"the memory bank is of {tuple(self.bank.shape[1:])} (samples, dim), but the run has "
                f"{(samples, like.shape[1])}"
            )
        self.bank = self.bank.to(like)
        return self.bank

    def _update(self, bank: Tensor, index: Tensor, seen: Tensor) -> None:
        """Take in what was seen, ``[2, N, dim]``; of a sample that was seen twice, the last.

        Not in place: the graph of the step still holds the old bank.
        """
        rows, inverse = torch.unique(index, return_inverse=True)
        last = torch.zeros_like(rows).scatter_reduce(0, inverse, torch.arange(len(index)).to(rows), "amax")
        updated = unit(self.momentum * bank[:, rows] + (1 - self.momentum) * seen[:, last])
        self.bank = bank.index_copy(1, rows, updated)

    def get_extra_state(self) -> dict[str, Tensor]:
        """Banks and constants, where there are some yet."""
        kept = {"bank": self.bank, "constants": self.constants}
        return {name: value for name, value in kept.items() if value is not None}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take them up."""
        self.bank, self.constants = state.get("bank"), state.get("constants")


class InBatchCRD(Loss):
    """CRD within the batch: mean of both directions' -log softmax of the sample's own other side, without a bank.

    Each side's embedding is to find its own sample on the other side among the batch's samples of other classes, at
    temperature T; a mixed target is taken by its largest class. It is over the samples of the batch: on several
    devices, each device's own. A sample without another class beside it gives 0.

    Source: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, with the InfoNCE bound of van
    den Oord et al., 2018, in place of the bank.

    Args:
        dim: Length of the embeddings, >= 1.
        temperature: T > 0.
    """

    student_tap: ClassVar[Taps] = "embedding"
    teacher_tap: ClassVar[Taps | None] = "embedding"

    def __init__(self, dim: int = 128, temperature: float = 0.07) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be >= 1, got {dim}")
        self.dim, self.temperature = dim, check_temperature(temperature)
        self.student_embedding: nn.Module = nn.Flatten(1)
        self.teacher_embedding: nn.Module = nn.Flatten(1)

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Make a linear embedding of both networks' features."""
        self.student_embedding, self.teacher_embedding = embedding(student, self.dim), embedding(teacher, self.dim)

    def forward(self, student: Features, teacher: Features, target: Tensor) -> Tensor:
        """The loss of one feature ``[N, ...]`` of each."""
        s, t = single(student, teacher)
        s, t = (unit(precise(make(x))) for make, x in ((self.student_embedding, s), (self.teacher_embedding, t)))
        return in_batch_contrast(s, t, largest_class(target), self.temperature)
