"""Which classes of a teacher are the classes of the data."""

from collections.abc import Sequence

from torch import Tensor


class ClassMap:
    """Picks, in the order of the data's classes, their logits out of a teacher's.

    Args:
        classes: For each class of the data the index of the teacher's class that it is.

    Raises:
        ValueError: if an index is negative or named twice, or there is none.
    """

    def __init__(self, classes: Sequence[int]) -> None:
        if not classes:
            raise ValueError("classes must name a class of the teacher for each class of the data, got none")
        if negative := [index for index in classes if index < 0]:
            raise ValueError(f"classes must be indices >= 0 of the teacher's classes, got {negative[0]}")
        if twice := sorted({index for index in classes if list(classes).count(index) > 1}):
            raise ValueError(f"classes must name each class of the teacher once at most, got {twice} more than once")
        self.classes = list(classes)

    def check(self, num_classes: int, own: int) -> None:
        """Let a map pass that fits.

        Args:
            num_classes: Of the data.
            own: Of the teacher.

        Raises:
            ValueError: if its length is not the number of the data's classes, or the teacher has no such class.
        """
        if len(self.classes) != num_classes:
            raise ValueError(
                f"classes must name {num_classes} classes, one for each of the data, got {len(self.classes)}"
            )
        if max(self.classes) >= own:
            raise ValueError(f"classes must be in 0 … {own - 1}, the teacher's classes, got {max(self.classes)}")

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits ``[..., C of the teacher]`` to ``[..., C of the data]``."""
        return logits[..., self.classes]
