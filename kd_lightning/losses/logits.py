"""What losses of logits have in common: checks, soft probabilities, the largest class."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses.precision import precise


def check_temperature(temperature: float) -> float:
    """The temperature, if it is one.

    Raises:
        ValueError: if it is not > 0 and finite.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    if temperature == float("inf"):
        raise ValueError("temperature must be finite, got inf")
    return temperature


def check_weight(name: str, value: float) -> float:
    """A weight inside a loss, if it is one.

    Raises:
        ValueError: if it is negative or not finite.
    """
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be >= 0 and finite, got {value}")
    return value


def check_logits(student: Tensor, teacher: Tensor, classes: int = 1) -> None:
    """Let logits ``[N, C]`` of one shape pass.

    Args:
        student: Of the student.
        teacher: Of the teacher.
        classes: At least so many are needed.

    Raises:
        ValueError: if the shapes differ, for instance in the number of classes, or there are too few of them.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher must have logits of one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    if student.ndim != 2 or student.shape[1] < classes:
        raise ValueError(f"logits must be [N, C] with C >= {classes}, got {tuple(student.shape)}")


def kl(log_p_s: Tensor, log_p_t: Tensor) -> Tensor:
    """KL(p_t || p_s), summed over the last axis, mean over the first, of log-probabilities."""
    return F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True)


def largest_class(target: Tensor) -> Tensor:
    """Class indices, int64 ``[N]``; of a mixed target ``[N, C]`` the class with the largest share."""
    return target if target.ndim == 1 else target.argmax(dim=1)


def others(logits: Tensor, label: Tensor) -> Tensor:
    """Logits ``[N, C - 1]`` of all classes but the label's, int64 ``[N]``."""
    return logits[F.one_hot(label, logits.shape[1]) == 0].view(len(logits), -1)


def standardized(logits: Tensor) -> Tensor:
    """Logits ``[N, C]`` z-scored per sample, (z - mean) / (1e-7 + std), with the unbiased standard deviation.

    Computed in float32 at least. A sample whose logits are all equal becomes 0, with a gradient of 0.

    Source: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, eq. 12.

    Raises:
        ValueError: for a single class, which has no deviation.
    """
    if logits.shape[1] < 2:
        raise ValueError(f"standardize needs at least 2 classes, got logits of shape {tuple(logits.shape)}")
    logits = precise(logits)
    varied = (logits != logits[:, :1]).any(dim=1, keepdim=True)
    centred = logits - logits.mean(dim=1, keepdim=True)
    # The deviation's gradient is not defined at 0, so such rows are replaced before, not after.
    deviation = torch.where(varied, logits, torch.arange(logits.shape[1]).to(logits)).std(dim=1, keepdim=True)
    return torch.where(varied, centred / (1e-7 + deviation), 0.0)
