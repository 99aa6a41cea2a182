"""Views that have names, so that an answer to one can be kept."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class NamedViews(Protocol):
    """Data whose every view is a function of (view name, index, number)."""

    repeats: int

    def samples(self) -> int:
        """Rows of the full training set, which the index counts."""

    def training_rows(self) -> Tensor:
        """Those that are trained on, int64 ``[M]``."""

    def view_names(self) -> Sequence[str]:
        """Names of the views."""

    def view_facts(self) -> Mapping[str, str]:
        """All that the pixels and targets of a view depend on beside its name, as short texts.

        Raises:
            ValueError: if they depend on more, as on the other samples of a batch.
        """

    def repeat_views_after(self, epochs: int) -> None:
        """Show the views of the first so many epochs again and again."""
