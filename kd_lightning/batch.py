"""The batch: what data, teacher, student and losses all speak of."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Images under the names of their views, targets, and the names of the samples.

    Attributes:
        images: View name -> float images ``[N, C, H, W]``, normalised for the student.
        target: Class indices, int64 ``[N]``, or class probabilities, float ``[N, C]``, when mixed.
        index: Row of each sample in the full training (or test) set, int64 ``[N]``; it does not change
            with the validation split. None when the loader does not know it.
        number: Which view of the sample this is, int64 ``[N]`` (epoch x repeats + r). None when the
            loader does not know it.
    """

    images: dict[str, Tensor]
    target: Tensor
    index: Tensor | None = None  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a batch
    number: Tensor | None = None

    @property
    def image(self) -> Tensor:
        """The default view, float ``[N, C, H, W]``."""
        return self.images["default"]

    def __len__(self) -> int:
        """The number of samples, not of fields."""
        return len(self.target)


def as_batch(batch: object) -> Batch:
    """A `Batch`, or the plain ``(image, target)`` pair of somebody else's DataLoader, as a `Batch`.

    Raises:
        TypeError: if ``batch`` is neither.
    """
    if isinstance(batch, Batch):
        return batch
    if isinstance(batch, Sequence) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        return Batch(images={"default": batch[0]}, target=batch[1])
    raise TypeError(
        f"batch must be a kd_lightning Batch or an (image, target) pair of tensors, got {type(batch).__name__}"
        + (f" of length {len(batch)}" if isinstance(batch, Sequence) else "")
    )


def check_labels(target: Tensor, num_classes: int, batch_idx: int) -> None:
    """Let labels pass that a cross entropy can take; it ignores a -100 without a word.

    Args:
        target: Class indices ``[N]``, or probabilities ``[N, C]``, which are not looked at.
        num_classes: C.
        batch_idx: Of the batch, for the error.

    Raises:
        ValueError: naming the first sample whose label is not in 0 … C - 1.
    """
    if target.ndim != 1:
        return
    wrong = ((target < 0) | (target >= num_classes)).nonzero().flatten()
    if len(wrong):
        sample = int(wrong[0])
        raise ValueError(
            f"the label of sample {sample} of batch {batch_idx} must be in 0 … {num_classes - 1}, "
            f"got {int(target[sample])}"
        )
