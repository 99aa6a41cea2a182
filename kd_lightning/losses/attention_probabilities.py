"""Attention probabilities: what a vision transformer's tokens attend to."""

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from kd_lightning.losses.base import Features, Loss, Taps
from kd_lightning.losses.features import paired
from kd_lightning.losses.logits import check_temperature
from kd_lightning.losses.precision import in_float32

Rows = Literal["cls", "all"]


def _logs(probabilities: Tensor, rows: Rows) -> Tensor:
    """Log-probabilities ``[N, heads, rows, L]``; underflown ones are as small as float32 has them."""
    chosen = probabilities[:, :, :1] if rows == "cls" else probabilities
    return chosen.clamp_min(torch.finfo(torch.float32).tiny).log()


def _aggregated(logs: Tensor, temperature: float) -> Tensor:
    """One head of several, ``[N, 1, rows, L]``: softmax(sum over heads of log a / T), in logarithms."""
    return (logs.sum(dim=1, keepdim=True) / temperature).log_softmax(dim=-1)


@in_float32
def attention_kl(student: Tensor, teacher: Tensor, rows: Rows = "cls", temperature: float = 1.0) -> Tensor:
    """KL(a_t || a_s) of attention rows, summed over heads and rows, mean over the batch.

    Where the numbers of heads differ, each side's are aggregated to one, softmax(sum over heads of log a / T).

    Source: Wang et al., "Attention Distillation: self-supervised vision transformer students need more guidance", BMVC
    2022, eq. 2 to 6.

    Args:
        student: Probabilities ``[N, heads, L, L]``, rows that sum to 1.
        teacher: Probabilities ``[N, heads', L, L]``.
        rows: ``cls``: the first row, the class token's; or ``all``.
        temperature: T > 0 of the aggregation.

    Raises:
        ValueError: if they are not attention of sequences of one length.
    """
    if student.ndim != 4 or teacher.ndim != 4 or student.shape[2:] != teacher.shape[2:]:
        raise ValueError(
            "student and teacher must be attention [N, heads, L, L] over sequences of one length, got "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    log_s, log_t = _logs(student, rows), _logs(teacher, rows)
    if log_s.shape[1] != log_t.shape[1]:
        log_s, log_t = _aggregated(log_s, temperature), _aggregated(log_t, temperature)
    return (log_t.exp() * (log_t - log_s)).sum(dim=(1, 2, 3)).mean()


class AttentionProbabilities(Loss):
    """KL(a_t || a_s) of attention rows, ViT to ViT, summed over heads and rows, mean over the batch; summed over taps.

    Both networks must have as many tokens. Where the numbers of heads differ, each side's are aggregated to one,
    softmax(sum over heads of log a / T). The default taps are the last blocks' attention.

    Source: Wang et al., "Attention Distillation: self-supervised vision transformer students need more guidance", BMVC
    2022, eq. 2 to 6.

    Args:
        rows: ``cls``: the class token's row, which is the first; ``all``: every token's.
        temperature: T > 0 of the aggregation; not used where the numbers of heads agree.
    """

    student_tap: ClassVar[Taps] = "attention"
    teacher_tap: ClassVar[Taps | None] = "attention"

    def __init__(self, rows: Rows = "cls", temperature: float = 1.0) -> None:
        super().__init__()
        if rows not in get_args(Rows):
            raise ValueError(f"rows must be one of {list(get_args(Rows))}, got {rows!r}")
        self.rows, self.temperature = rows, check_temperature(temperature)

    def forward(self, student: Features, teacher: Features, target: Tensor) -> Tensor:
        """The loss of probabilities ``[N, heads, L, L]``; the labels are not looked at."""
        pairs = paired(student, teacher)
        return torch.stack([attention_kl(s, t, self.rows, self.temperature) for s, t in pairs]).sum()
