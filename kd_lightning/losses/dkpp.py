"""Dark knowledge with permuted predictions: the teacher's probabilities, all but the largest in another order."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses.base import Loss
from kd_lightning.losses.logits import check_logits, others
from kd_lightning.losses.precision import in_float32
from kd_lightning.seeds import hashed, run_seed


def permuted(probabilities: Tensor, index: Tensor, number: Tensor, seed: int) -> Tensor:
    """Class probabilities ``[N, C]`` with the largest of each row in its place and the others permuted.

    Args:
        probabilities: ``[N, C]``; of several largest the first one stays.
        index: Row of each sample in the training set, int64 ``[N]``.
        number: Which view of the sample this is, int64 ``[N]``.
        seed: The permutation of a row is a function of (seed, index, number).
    """
    largest = probabilities.argmax(dim=1)
    lanes = torch.arange(probabilities.shape[1] - 1, device=probabilities.device)
    order = hashed(seed, "permutation", index[:, None], number[:, None], lanes).argsort(dim=1, stable=True)
    moved = others(probabilities, largest).gather(1, order)
    kept = F.one_hot(largest, probabilities.shape[1]) == 1
    return torch.where(kept, probabilities, 0.0).masked_scatter(~kept, moved)


@in_float32
def permuted_soft_target(student: Tensor, teacher: Tensor, index: Tensor, number: Tensor, seed: int) -> Tensor:
    """-sum_c q_c log p_s,c, mean over the batch, q being p_t with all but the largest `permuted`.

    Source: Furlanello et al., "Born-Again Neural Networks", ICML 2018, eq. 10.

    Args:
        student: Logits ``[N, C]``.
        teacher: Logits ``[N, C]``.
        index: Row of each sample in the training set, int64 ``[N]``.
        number: Which view of the sample this is, int64 ``[N]``.
        seed: Of the permutations.

    Returns:
        A scalar >= 0.

    Raises:
        ValueError: if the logits differ in shape.
    """
    check_logits(student, teacher)
    return F.cross_entropy(student, permuted(F.softmax(teacher, dim=1), index, number, seed))


class DKPP(Loss):
    """-sum_c q_c log p_s,c, mean over the batch, q being p_t with all but the largest probability permuted.

    So the student is told how sure the teacher is, and how the rest is spread, but not over which classes. The
    permutation of each sample is drawn by (seed, index, number), another one for each view; p is taken at T = 1. The
    labels are not looked at.

    Source: Furlanello et al., "Born-Again Neural Networks", ICML 2018, eq. 10.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"index", "number"})

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor, index: Tensor, number: Tensor) -> Tensor:
        """The loss of logits ``[N, C]`` of both, for int64 ``[N]`` index and number."""
        return permuted_soft_target(student, teacher, index, number, run_seed())
