"""How logits are kept in bytes: all of them in half precision, or the largest and an even remainder."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

HALF_MAX = torch.finfo(torch.float16).max
LEAST = 1e-12  # of a remainder, so that its logarithm is finite


class OutputCodec(ABC):
    """Turns logits into rows of bytes and back.

    Attributes:
        classes: C.
        row_bytes: Bytes of a row.
        name: What a file says of it.
    """

    classes: int
    row_bytes: int
    name: str

    @abstractmethod
    def encode(self, logits: Tensor) -> Tensor:
        """Logits ``[N, C]`` as uint8 ``[N, row_bytes]``.

        Raises:
            ValueError: if one is not finite, or too large for half precision.
        """

    @abstractmethod
    def decode(self, rows: Tensor) -> Tensor:
        """The logits, float32 ``[N, C]``, of uint8 ``[N, row_bytes]``."""


def as_half(values: Tensor) -> Tensor:
    """Values in half precision.

    Raises:
        ValueError: if one is not finite, or beyond what half precision can hold.
    """
    if not bool((values.abs() <= HALF_MAX).all()):
        raise ValueError(f"the teacher's logits must be finite and within ±{HALF_MAX:.0f} to be stored")
    return values.to(torch.float16)


class DenseCodec(OutputCodec):
    """Every logit in half precision: 2 bytes each, relative error at most 2^-11.

    Args:
        classes: C.
    """

    def __init__(self, classes: int) -> None:
        self.classes, self.row_bytes, self.name = classes, 2 * classes, "float16"

    def encode(self, logits: Tensor) -> Tensor:
        """Logits ``[N, C]`` as uint8 ``[N, 2 C]``."""
        return as_half(logits).contiguous().view(torch.uint8)

    def decode(self, rows: Tensor) -> Tensor:
        """The logits, float32 ``[N, C]``."""
        return rows.contiguous().view(torch.float16).float()


class TopKCodec(OutputCodec):
    """The k largest log-probabilities in half precision with their classes; the rest of the probability spread evenly.

    What comes back are log-probabilities, which softmax takes for logits at T = 1. As the remainder is flat, a higher
    temperature lifts it: of 100 classes with k = 32, the gradient of the KL divergence errs by 3 % at T = 1 and by 43 %
    at T = 4.

    Source: Shen and Xing, "A Fast Knowledge Distillation Framework for Visual Recognition", ECCV 2022 (marginal
    smoothing).

    Args:
        classes: C, at most 65,536.
        k: In 1 … C - 1.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, classes: int, k: int) -> None:
        if classes > 1 << 16:
            raise ValueError(f"top_k takes at most {1 << 16} classes, got {classes}")
        if not 1 <= k < classes:
            raise ValueError(f"top_k must be in 1 … {classes - 1} for {classes} classes, got {k}")
        self.classes, self.k, self.row_bytes, self.name = classes, k, 4 * k, f"top {k} float16"

    def encode(self, logits: Tensor) -> Tensor:
        """Logits ``[N, C]`` as uint8 ``[N, 4 k]``: the values, then the classes."""
        as_half(logits)
        values, places = logits.float().log_softmax(dim=1).topk(self.k, dim=1)
        return torch.cat([as_half(values).view(torch.uint8), places.to(torch.uint16).view(torch.uint8)], dim=1)

    def decode(self, rows: Tensor) -> Tensor:
        """Log-probabilities, float32 ``[N, C]``."""
        values = rows[:, : 2 * self.k].contiguous().view(torch.float16).float()
        places = rows[:, 2 * self.k :].contiguous().view(torch.uint16).long()
        rest = (1 - values.exp().sum(dim=1, keepdim=True)).clamp(min=LEAST) / (self.classes - self.k)
        return rest.log().expand(-1, self.classes).scatter(1, places, values)
