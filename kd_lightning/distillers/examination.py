"""The examination: a teacher shows what it knows before anyone learns from it."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from kd_lightning.batch import as_batch
from kd_lightning.models.teacher import Teacher

TOLERANCE = 0.02  # of expected_top1, beside the sampling error


def examine(
    teacher: Teacher,
    loader: Iterable[object],
    to_device: Callable[[object], object],
    over_ranks: Callable[[Tensor], Tensor],
) -> tuple[float, int]:
    """The teacher's top-1 in [0, 1] on the first images of a loader, and their number, over all ranks.

    Mixed targets count by their largest class.

    Args:
        teacher: Ready to answer, with a check.
        loader: Batches of this rank.
        to_device: Moves a batch to the teacher's device.
        over_ranks: Sums a tensor over the processes.
    """
    if teacher.check is False:
        raise ValueError("check is false: there is nothing to examine")
    world = int(over_ranks(torch.ones((), dtype=torch.int64)))
    wanted = -(-teacher.check.images // world)
    right = seen = 0
    batches = iter(loader)
    # A sharded teacher answers on all ranks or on none, so the ranks stop together.
    while over_ranks(torch.tensor(int((raw := next(batches, None)) is not None and seen < wanted))) > 0:
        if raw is None:
            continue
        batch = as_batch(to_device(raw))
        target = batch.target if batch.target.ndim == 1 else batch.target.argmax(dim=1)
        decided = teacher(batch).logits.argmax(dim=1)
        take = min(wanted - seen, len(batch))
        right += int((decided == target)[:take].sum())
        seen += take
    right, seen = over_ranks(torch.tensor([right, seen])).tolist()
    return right / max(seen, 1), seen


def judge(teacher: Teacher, top1: float, images: int, num_classes: int) -> None:
    """Let a teacher pass, or say why not.

    Raises:
        ValueError: if it is near chance, or not what ``expected_top1`` says.
    """
    if teacher.check is False:
        return
    threshold = teacher.check.threshold(num_classes)
    if top1 < threshold:
        raise ValueError(
            f"the teacher's top-1 is {top1:.4f} on {images} images, near chance (1/{num_classes}); at least "
            f"{threshold:.4f} is asked for: are weights, normalisation and class order its own? "
            "teacher.check: false lets it teach all the same"
        )
    if teacher.expected_top1 is not None:
        tolerance = TOLERANCE + 2 * (teacher.expected_top1 * (1 - teacher.expected_top1) / max(images, 1)) ** 0.5
        if abs(top1 - teacher.expected_top1) > tolerance:
            raise ValueError(
                f"the teacher's top-1 is {top1:.4f} on {images} images, but expected_top1 is {teacher.expected_top1} "
                f"(tolerance {tolerance:.4f}): are weights, normalisation and resolution its own?"
            )
