"""Class by class: what is right, what is taken for what, what one network gains over another and loses."""

from typing import NamedTuple

from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix


class Changes(NamedTuple):
    """What one network decides otherwise than another, class by class.

    Attributes:
        accuracy: Of the network, float64 ``[C]``; nan where a class has no image.
        other: Of the other one.
        gained: How many images of each class only the network has right, int64 ``[C]``.
        lost: How many only the other one has right.
    """

    accuracy: Tensor
    other: Tensor
    gained: Tensor
    lost: Tensor


def confusion(target: Tensor, decision: Tensor, num_classes: int) -> Tensor:
    """How many images of each class (row) are taken for each class (column), int64 ``[C, C]``.

    Args:
        target: Labels, int64 ``[M]``.
        decision: Classes, int64 ``[M]``.
        num_classes: C.

    Raises:
        ValueError: if there are not as many decisions as labels, or one is not in 0 ... C - 1.
    """
    if target.shape != decision.shape or target.ndim != 1:
        raise ValueError(f"two vectors of one length are compared, got {tuple(target.shape)}, {tuple(decision.shape)}")
    for values in (target, decision):
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < num_classes:
            raise ValueError(
                f"classes must be in 0 ... {num_classes - 1}, got {int(values.min())} to {int(values.max())}"
            )
    return multiclass_confusion_matrix(decision, target, num_classes, validate_args=False)


def teacher_student_confusion(teacher: Tensor, student: Tensor, num_classes: int) -> Tensor:
    """How often the student decides each class (column) where the teacher decides another (row), int64 ``[C, C]``.

    Its diagonal is where they agree. Arguments as of `confusion`.
    """
    return confusion(teacher, student, num_classes)


def per_class_accuracy(target: Tensor, decision: Tensor, num_classes: int) -> Tensor:
    """Share of each class's images that is right, float64 ``[C]``; nan for a class without. See `confusion`."""
    counts = confusion(target, decision, num_classes)
    return counts.diag().double() / counts.sum(dim=1)


def changes(target: Tensor, decision: Tensor, other: Tensor, num_classes: int) -> Changes:
    """What a network gains and loses against another, as a student against its teacher.

    Args:
        target: Labels, int64 ``[M]``.
        decision: The network's, int64 ``[M]``.
        other: The other's.
        num_classes: C.

    Raises:
        ValueError: as `confusion`.
    """
    accuracy, its_accuracy = (per_class_accuracy(target, each, num_classes) for each in (decision, other))
    right, its_right = decision == target, other == target
    gained, lost = (target[only].bincount(minlength=num_classes) for only in (right & ~its_right, its_right & ~right))
    return Changes(accuracy, its_accuracy, gained, lost)
