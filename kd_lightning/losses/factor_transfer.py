"""Factor transfer: a paraphraser digests the teacher's features, a translator the student's."""

from typing import ClassVar, Literal, get_args

from torch import Tensor, nn

from kd_lightning.length import Length, check_length, epochs_of
from kd_lightning.losses.adapters import OfOneSize
from kd_lightning.losses.base import Features, Loss, Shapes, Taps
from kd_lightning.losses.features import check_same, of_one_size, single, unit
from kd_lightning.losses.precision import in_float32

Factor = Literal["flat", "map"]


def _block(in_chs: int, out_chs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_chs, out_chs, 3, padding=1), nn.BatchNorm2d(out_chs), nn.LeakyReLU(0.1))


def _unblock(in_chs: int, out_chs: int) -> nn.Sequential:
    up = nn.ConvTranspose2d(in_chs, out_chs, 3, padding=1)
    return nn.Sequential(up, nn.BatchNorm2d(out_chs), nn.LeakyReLU(0.1))


def encoder(channels: int, factors: int) -> nn.Sequential:
    """Three 3x3 convolutions ``[N, channels, H, W]`` to ``[N, factors, H, W]``: translator, or half a paraphraser."""
    return nn.Sequential(_block(channels, channels), _block(channels, factors), _block(factors, factors))


def decoder(channels: int, factors: int) -> nn.Sequential:
    """Three 3x3 transposed convolutions back, ``[N, factors, H, W]`` to ``[N, channels, H, W]``."""
    return nn.Sequential(_unblock(factors, factors), _unblock(factors, channels), _unblock(channels, channels))


def _normalised(factors: Tensor, kind: Factor) -> Tensor:
    return unit((factors.square().mean(dim=1) if kind == "map" else factors).flatten(1))


@in_float32
def factor_distance(student: Tensor, teacher: Tensor, p: int = 1, factor: Factor = "flat") -> Tensor:
    """Mean absolute (p = 1) or squared (p = 2) difference of the l2-normalised factors.

    Source: Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018, eq.
    4, as a mean.

    Args:
        student: Factors ``[N, K, H, W]`` of the translator.
        teacher: Factors ``[N, K, H, W]`` of the paraphraser.
        p: 1 or 2.
        factor: ``flat``: the flattened factors, as the authors have it; ``map``: their mean square over the channels,
            an attention-like map, as the protocol of Tian et al., ICLR 2020, has it.

    Raises:
        ValueError: if the shapes differ.
    """
    student, teacher = of_one_size(student, teacher)
    if factor == "flat":
        check_same(student, teacher)
    difference = _normalised(student, factor) - _normalised(teacher, factor)
    return difference.abs().mean() if p == 1 else difference.square().mean()


@in_float32
def reconstruction(decoded: Tensor, feature: Tensor) -> Tensor:
    """Mean squared error of the paraphraser's decoder, the only thing that it learns from (eq. 3 of the paper)."""
    return (decoded - feature).square().mean()


class FactorTransfer(Loss):
    """FT: mean absolute (p = 1) or squared (p = 2) difference of l2-normalised factors, ||T(s)/|T(s)| - P(t)/|P(t)|||.

    In the first epochs the paraphraser P, a convolutional autoencoder, is trained on the teacher's features alone: the
    value is then its reconstruction error, and no gradient reaches the student. Afterwards it is fixed, and the
    translator T is trained with the student. Let the cross entropy begin with a window after those epochs.

    Source: Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018, eq.
    3 and 4, as means.

    Args:
        p: 1 or 2.
        rate: Channels of the factors over those of the teacher's feature, > 0.
        factor: ``flat``: the flattened factors, as the authors have it; ``map``: their mean square over the channels,
            an attention-like map, to which the weight 200 of the CIFAR protocol belongs.
        paraphraser_epochs: So many epochs train the paraphraser, >= 1; a float is a share of the training in (0, 1].
    """

    needs: ClassVar[frozenset[str]] = frozenset({"epoch", "epochs"})
    student_tap: ClassVar[Taps] = "last_stage"
    teacher_tap: ClassVar[Taps | None] = "last_stage"

    def __init__(self, p: int = 1, rate: float = 0.5, factor: Factor = "flat", paraphraser_epochs: Length = 30) -> None:
        super().__init__()
        if p not in (1, 2):
            raise ValueError(f"p must be 1 or 2, got {p}")
        if not 0 < rate < float("inf"):
            raise ValueError(f"rate must be > 0 and finite, got {rate}")
        if factor not in get_args(Factor):
            raise ValueError(f"factor must be one of {list(get_args(Factor))}, got {factor!r}")
        self.paraphraser_epochs = check_length("paraphraser_epochs", paraphraser_epochs)
        self.p, self.rate, self.factor = p, rate, factor
        self.paraphraser: nn.ModuleDict | None = None
        self.translator: nn.Sequential | None = None

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Make paraphraser and translator.

        Raises:
            ValueError: if there is not one map of each network.
        """
        shapes = [*student, *teacher]
        if len(student) != 1 or len(teacher) != 1 or any(len(shape) != 4 for shape in shapes):
            raise ValueError(f"FactorTransfer needs one map [N, C, H, W] of each network, got {shapes}")
        channels = teacher[0][1]
        factors = max(1, int(self.rate * channels))
        self.paraphraser = nn.ModuleDict({"encoder": encoder(channels, factors), "decoder": decoder(channels, factors)})
        pool = OfOneSize((teacher[0][2], teacher[0][3]))
        self.translator = nn.Sequential(pool, encoder(student[0][1], factors))

    def forward(
        self,
        student: Features,
        teacher: Features,
        target: Tensor,
        epoch: int | None = None,
        epochs: int | None = None,
    ) -> Tensor:
        """The paraphraser's loss in its epochs, else the student's, of one map ``[N, C, H, W]`` of each.

        Without an epoch, the student's; the labels are not looked at.
        """
        s, t = single(student, teacher)
        if self.paraphraser is None or self.translator is None:
            return factor_distance(s, t, self.p, self.factor)
        if epoch is not None and epoch < epochs_of(self.paraphraser_epochs, epochs):
            self.paraphraser.train()
            return reconstruction(self.paraphraser["decoder"](self.paraphraser["encoder"](t)), t)
        self.paraphraser.eval()
        factors = self.paraphraser["encoder"](t).detach()
        return factor_distance(self.translator(s), factors, self.p, self.factor)
