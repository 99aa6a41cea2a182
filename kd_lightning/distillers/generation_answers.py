"""What generations answer, each alone, and the last ones together."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def ensemble(logits: Sequence[Tensor]) -> Tensor:
    """The logarithm ``[N, C]`` of the mean of the class probabilities of several logits ``[N, C]``.

    Source: Furlanello et al., "Born-Again Neural Networks", ICML 2018, eq. 7.
    """
    return torch.stack([one.float().log_softmax(dim=1) for one in logits]).logsumexp(dim=0) - math.log(len(logits))


def answered(logits: Sequence[Tensor]) -> dict[str, Tensor]:
    """Each generation's logits ``[N, C]``, and those of the last 2, 3, ... together, by name."""
    each = {f"generation_{number}": own for number, own in enumerate(logits)}
    return each | {f"ensemble_{count}": ensemble(logits[-count:]) for count in range(2, len(logits) + 1)}


def answer_names(generations: int) -> list[str]:
    """The names in `answered`, for so many generations."""
    return list(answered([torch.zeros(1, 1)] * generations))
