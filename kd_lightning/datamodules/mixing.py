"""Mixup and CutMix: pairs of samples and of their targets, with shares drawn from names."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from scipy.special import betaincinv
from torch import Tensor
from torch.nn import functional as F

from kd_lightning.seeds import uniform

KNOTS = 4097


@cache
def beta_table(alpha: float, device: torch.device) -> Tensor:
    """Quantiles of Beta(alpha, alpha) at 4097 equidistant levels from 0 to 1, float32."""
    levels = torch.linspace(0, 1, KNOTS, dtype=torch.float64)
    return torch.from_numpy(betaincinv(alpha, alpha, levels.numpy())).to(device, torch.float32)


def beta_quantile(alpha: float, level: Tensor) -> Tensor:
    """Quantiles of Beta(alpha, alpha), linear between the knots of `beta_table`.

    Args:
        alpha: > 0.
        level: float32 ``[N]`` in [0, 1).
    """
    table = beta_table(alpha, level.device)
    place = level * (KNOTS - 1)
    knot = place.long()
    return table[knot] + (place - knot) * (table[knot + 1] - table[knot])


def mixup(images: Tensor, partners: Tensor, lam: Tensor) -> Tensor:
    """``lam * image + (1 - lam) * partner`` (H. Zhang et al., "mixup", 2018, eq. 1).

    Args:
        images: float ``[N, C, H, W]``.
        partners: float ``[N, C, H, W]``.
        lam: Share of the image, ``[N]`` in [0, 1].
    """
    share = lam[:, None, None, None]
    return images * share + partners * (1 - share)


def cutmix_box(lam: Tensor, center_y: Tensor, center_x: Tensor, height: int, width: int) -> Tensor:
    """Top, bottom, left and right edge of each box, int64 ``[4, N]``, clipped at the borders.

    Before clipping, the box has the image's proportions and the share ``1 - lam`` of its area
    (S. Yun et al., "CutMix", 2019, eq. 2).

    Args:
        lam: Share of the image, ``[N]`` in [0, 1].
        center_y: Of the box, ``[N]`` in [0, 1), in units of the height.
        center_x: Of the box, ``[N]`` in [0, 1), in units of the width.
        height: Of the images, in pixels.
        width: Of the images, in pixels.
    """
    ratio = (1 - lam).sqrt()
    edges = []
    for center, size in ((center_y, height), (center_x, width)):
        middle, length = (center * size).long(), (ratio * size).long()
        edges += [(middle - length // 2).clamp(min=0), (middle - length // 2 + length).clamp(max=size)]
    return torch.stack(edges)


def cutmix(images: Tensor, partners: Tensor, lam: Tensor, center_y: Tensor, center_x: Tensor) -> tuple[Tensor, Tensor]:
    """Images with a box of their partner pasted in, and the share of the area that is still theirs.

    Args:
        images: float ``[N, C, H, W]``.
        partners: float ``[N, C, H, W]``.
        lam: Share of the image before the box is rounded to pixels and clipped, ``[N]`` in [0, 1].
        center_y: Of the box, ``[N]`` in [0, 1), in units of the height.
        center_x: Of the box, ``[N]`` in [0, 1), in units of the width.
    """
    height, width = images.shape[2:]
    top, bottom, left, right = cutmix_box(lam, center_y, center_x, height, width)
    down, across = torch.arange(height, device=lam.device), torch.arange(width, device=lam.device)
    lines = (down >= top[:, None]) & (down < bottom[:, None])
    columns = (across >= left[:, None]) & (across < right[:, None])
    inside = lines[:, None, :, None] & columns[:, None, None, :]
    area = (bottom - top) * (right - left)
    return torch.where(inside, partners, images), 1 - area / (height * width)


def mix_targets(target: Tensor, partner_target: Tensor, lam: Tensor, num_classes: int) -> Tensor:
    """Class probabilities of mixed images, float32 ``[N, C]``.

    Args:
        target: Class indices, int64 ``[N]``.
        partner_target: Class indices of the partners, int64 ``[N]``.
        lam: Share of the image, ``[N]`` in [0, 1].
        num_classes: C.
    """
    share = lam[:, None]
    return F.one_hot(target, num_classes) * share + F.one_hot(partner_target, num_classes) * (1 - share)


class Shares(NamedTuple):
    """How samples are mixed with their partners.

    Attributes:
        lam: Share of the sample before a box is rounded to pixels, float32 ``[N]``; 1 where it stays as it is.
        cut: Whether a box is pasted in (CutMix) rather than all pixels averaged (Mixup), bool ``[N]``.
        center_y: Of the box, float32 ``[N]`` in [0, 1), in units of the height.
        center_x: Of the box, float32 ``[N]`` in [0, 1), in units of the width.
    """

    lam: Tensor
    cut: Tensor
    center_y: Tensor
    center_x: Tensor


def mix(
    images: Mapping[str, Tensor], partners: Mapping[str, Tensor], shares: Shares
) -> tuple[dict[str, Tensor], Tensor]:
    """All views of samples mixed with the same views of their partners, by the same shares and relative boxes.

    Args:
        images: View name -> float ``[N, C, H, W]``; ``"default"`` is among them.
        partners: The same views of the partners.
        shares: See `Mixing.draw`.

    Returns:
        The mixed views, and the sample's share of its default view, ``[N]``, for `mix_targets`.
    """
    mixed, lams = {}, {}
    whole = torch.ones_like(shares.lam)
    cut_lam, average_lam = torch.where(shares.cut, shares.lam, whole), torch.where(shares.cut, whole, shares.lam)
    for name, image in images.items():
        pasted, left = cutmix(image, partners[name], cut_lam, shares.center_y, shares.center_x)
        mixed[name] = mixup(pasted, partners[name], average_lam)
        lams[name] = left * average_lam  # one of the two is exactly 1
    return mixed, lams["default"]


@dataclass(frozen=True)
class Mixing:
    """Mixup, CutMix, or a choice between the two for each sample.

    Args:
        mixup_alpha: Of Mixup's Beta(alpha, alpha); 0 for no Mixup.
        cutmix_alpha: Of CutMix's Beta(alpha, alpha); 0 for no CutMix.
        switch_prob: Chance of CutMix for a mixed sample where both are on, in [0, 1].
        prob: Chance that a sample is mixed at all, in [0, 1].

    Raises:
        ValueError: if an argument is out of range, or both alphas are 0.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    switch_prob: float = 0.5
    prob: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, alpha in {"mixup_alpha": self.mixup_alpha, "cutmix_alpha": self.cutmix_alpha}.items():
            if not 0 <= alpha < float("inf"):
                raise ValueError(f"mixing.{name} must be finite and >= 0, got {alpha}")
        if self.mixup_alpha == self.cutmix_alpha == 0:
            raise ValueError("mixing needs mixup_alpha > 0 or cutmix_alpha > 0, got 0 and 0 (mixing: null for none)")
        for name, prob in {"switch_prob": self.switch_prob, "prob": self.prob}.items():
            if not 0 <= prob <= 1:
                raise ValueError(f"mixing.{name} must be in [0, 1], got {prob}")

    def draw(self, key: Tensor) -> Shares:
        """The shares of samples.

        Args:
            key: Names of the samples, int64 ``[N]``, on the device where the shares are wanted.
        """
        level = uniform(key, "lambda")
        both = self.mixup_alpha > 0 and self.cutmix_alpha > 0
        switch = self.switch_prob if both else float(self.cutmix_alpha > 0)
        cut = uniform(key, "switch") < switch
        lam = torch.ones_like(level)
        if self.mixup_alpha > 0:
            lam = torch.where(cut, lam, beta_quantile(self.mixup_alpha, level))
        if self.cutmix_alpha > 0:
            lam = torch.where(cut, beta_quantile(self.cutmix_alpha, level), lam)
        lam = torch.where(uniform(key, "mix") < self.prob, lam, torch.ones_like(lam))
        return Shares(lam, cut, uniform(key, "box y"), uniform(key, "box x"))
