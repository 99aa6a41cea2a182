"""The validation split, and which loader serves what."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_lightning.datamodules.base import ImageDataModule, Split, held_out
from kd_lightning.datamodules.loader import Loader
from kd_lightning.datamodules.plan import EpochPlan

TRAIN, TEST = 40, 12


class NoImages(ImageDataModule):
    """Rows, and loaders that say what they were made of."""

    mean = (0.5,)
    std = (0.5,)
    classes = ("cat", "dog", "eel")
    image_shape = (1, 2, 2)

    @property
    def train_targets(self) -> Tensor:
        raise NotImplementedError

    def rows(self, split: Split) -> Tensor:
        if split == "test":
            return torch.arange(TEST)
        return held_out(TRAIN, self.val_fraction)[split == "val"]

    def loader(self, split: Split, plan: EpochPlan, device: torch.device) -> Any:
        return SimpleNamespace(split=split, plan=plan, device=device)


def trainer(rank: int, world: int, seed: int) -> Any:
    """What of a trainer a data module looks at; rank 0 broadcasts its seed."""
    strategy = SimpleNamespace(broadcast=lambda _: seed, root_device=torch.device("meta"))
    return SimpleNamespace(strategy=strategy, global_rank=rank, world_size=world)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.99])
def test_split_is_a_partition(fraction: float) -> None:
    train, val = held_out(1000, fraction)
    assert len(val) == round(1000 * fraction)
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(1000))
    assert torch.equal(train, train.sort().values)
    assert torch.equal(val, val.sort().values)


def test_split_is_the_same_in_every_run_and_another_for_another_seed() -> None:
    assert torch.equal(held_out(1000, 0.1)[1], held_out(1000, 0.1)[1])
    assert not torch.equal(held_out(1000, 0.1)[1], held_out(1000, 0.1, seed=1)[1])
    assert set(held_out(1000, 0.1)[1].tolist()) < set(held_out(1000, 0.2)[1].tolist())


def test_held_out_rows_lie_all_over_the_set() -> None:
    counts = torch.bincount(held_out(10_000, 0.1)[1] // 1000, minlength=10).double()
    assert float(((counts - 100) ** 2 / 100).sum()) < 27.9  # chi-square, 9 degrees of freedom, p = 0.001


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 1.0}, r"^val_fraction must be in \[0, 1\), got 1.0$"),
        ({"val_fraction": -0.1}, r"^val_fraction must be in \[0, 1\), got -0.1$"),
        (
            {"val_fraction": 0.1, "validate_on_test": True},
            r"^validate_on_test needs val_fraction 0, got 0.1: choose one validation set$",
        ),
        ({"global_batch_size": 0}, r"^global_batch_size must be >= 1, got 0$"),
        ({"eval_batch_size": 0}, r"^eval_batch_size must be >= 1, got 0$"),
    ],
)
def test_faults(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoImages(**{"global_batch_size": 4, **options})


def test_number_of_classes() -> None:
    assert NoImages(4).num_classes == 3


def test_training_shuffles_augments_and_repeats() -> None:
    plan = NoImages(8, repeats=2, seed=3, val_fraction=0.25).train_dataloader().plan
    assert (plan.train, plan.repeats, plan.seed, plan.global_batch_size) == (True, 2, 3, 8)
    assert (plan.rank, plan.world) == (0, 1)
    assert len(plan.rows) == 30


@pytest.mark.parametrize("name", ["test_dataloader", "predict_dataloader"])
def test_evaluation_does_not(name: str) -> None:
    loader = getattr(NoImages(8, repeats=2, drop_last=True, eval_batch_size=5), name)()
    assert loader.split == "test"
    assert (loader.plan.train, loader.plan.repeats, loader.plan.global_batch_size) == (False, 1, 5)
    assert loader.plan.dropped == 0
    assert len(loader.plan.rows) == TEST


def test_evaluation_batch_is_by_default_that_of_training() -> None:
    assert NoImages(8).test_dataloader().plan.global_batch_size == 8


def test_validation_set() -> None:
    def split(**options: Any) -> Loader | list[Loader]:
        return NoImages(8, **options).val_dataloader()

    assert split() == []
    held = split(val_fraction=0.25)
    assert (held.split, len(held.plan.rows), held.plan.train) == ("val", 10, False)  # type: ignore[union-attr]
    assert split(validate_on_test=True).split == "test"  # type: ignore[union-attr]


def test_validation_set_of_no_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^the evaluation set is empty$"):
        NoImages(8, val_fraction=0.001).val_dataloader()


def test_rank_device_and_seed_are_the_trainers() -> None:
    data = NoImages(8)
    data.trainer = trainer(rank=1, world=2, seed=99)
    loader = data.train_dataloader()
    assert (loader.plan.rank, loader.plan.world, loader.plan.seed) == (1, 2, 99)
    assert loader.device == torch.device("meta")


def test_seed_is_the_runs_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert NoImages(8).train_dataloader().plan.seed == 17
    assert NoImages(8, seed=0).train_dataloader().plan.seed == 0


def test_dropped_samples_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        NoImages(9, drop_last=True).train_dataloader()
        NoImages(9, drop_last=True).test_dataloader()
    assert [record.message for record in caplog.records] == ["The last batch of an epoch, 4 samples, is dropped."]
