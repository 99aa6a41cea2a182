"""What a distiller must know of the data before it can build: the number of classes, and what a view looks like."""

from collections.abc import Sequence
from typing import Any, Protocol, cast, runtime_checkable

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from kd_lightning.batch import as_batch
from kd_lightning.models import NamedViews, Views


@runtime_checkable
class KnowsClasses(Protocol):
    """A data module that says how many classes there are."""

    @property
    def num_classes(self) -> int:
        """Number of classes; known after ``setup``."""


@runtime_checkable
class KnowsClassNames(Protocol):
    """A data module that may say what the classes are called."""

    classes: Sequence[str] | None


@runtime_checkable
class KnowsViews(Protocol):
    """A data module that says what its images look like, and by what they are normalised."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Of each channel, in units of [0, 1]."""

    @property
    def std(self) -> tuple[float, ...]:
        """Of each channel, in units of [0, 1]."""


@runtime_checkable
class KnowsTrainTargets(Protocol):
    """A data module that says the class of every training sample."""

    @property
    def train_targets(self) -> Tensor:
        """Class indices of the full training set by row, int64 ``[M]``; known after ``setup``."""


def train_targets_of(trainer: pl.Trainer) -> Tensor:
    """The class of every sample of the full training set, int64 ``[M]``.

    Raises:
        ValueError: if the data module does not say it.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if not isinstance(data, KnowsTrainTargets):
        raise ValueError(
            "the loss needs train_targets, the classes of all training samples: use a datamodule that has them"
        )
    return data.train_targets


def classes_of(trainer: pl.Trainer, stated: int | None) -> int:
    """The number of classes of the data; ``stated`` where no data module says it.

    Raises:
        ValueError: if nobody says it, or two say it differently.
    """
    data: Any = getattr(trainer, "datamodule", None)
    told = data.num_classes if isinstance(data, KnowsClasses) else None
    if told is None and stated is None:
        raise ValueError("the number of classes is not known: give num_classes, or a datamodule that has it")
    if told is not None and stated is not None and told != stated:
        raise ValueError(f"num_classes is {stated}, but the data has {told} classes: leave num_classes out")
    return cast(int, stated if told is None else told)


def class_names(data: object, count: int) -> list[str]:
    """Names of the classes in the order of their indices; the indices where a data module, or None, says none."""
    stated = data.classes if isinstance(data, KnowsClassNames) else None
    return list(stated or map(str, range(count)))


def views_of(trainer: pl.Trainer) -> Views:
    """What a view looks like, as the data module says it, or as the first batch of a plain DataLoader shows it.

    Raises:
        ValueError: if there is neither.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if isinstance(data, KnowsViews):
        named = data if isinstance(data, NamedViews) and trainer.state.fn == TrainerFn.FITTING else None
        return Views(data.image_shape, data.mean, data.std, named)
    for loop in (trainer.fit_loop, trainer.validate_loop, trainer.test_loop, trainer.predict_loop):
        if loop._data_source.is_defined():
            loader = loop._data_source.dataloader()
            first = as_batch(next(iter(loader[0] if isinstance(loader, list) else loader)))
            return Views(cast(tuple[int, int, int], tuple(first.image.shape[1:])))
    raise ValueError("the shape of the images is not known: give a DataLoader or a datamodule")
