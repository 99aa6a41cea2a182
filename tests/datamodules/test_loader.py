"""A loader that was left at any batch goes on with the next one."""

from collections.abc import Iterator

import pytest
import torch

from kd_lightning.batch import Batch
from kd_lightning.datamodules.loader import Loader
from kd_lightning.datamodules.plan import EpochPlan

BATCHES = 4


class NamesLoader(Loader):
    """Gives out names and nothing else."""

    def fetch(self, position: int) -> Iterator[Batch]:
        for rows, numbers in self.plan.batches_from(position):
            yield Batch({"default": rows}, rows, rows, numbers)


@pytest.fixture
def loader() -> Loader:
    return make()


def make(epoch: int = 0) -> Loader:
    made = NamesLoader(EpochPlan(torch.arange(12), 3, seed=0, train=True), torch.device("cpu"))
    made.plan.set_epoch(epoch)
    return made


def targets(loader: Loader) -> list[list[int]]:
    return [batch.target.tolist() for batch in loader]


def left_at(position: int, epoch: int) -> dict[str, int]:
    """The state of a loader that has given out some batches of an epoch."""
    loader = make(epoch)
    iterator = iter(loader)
    for _ in range(position):
        next(iterator)
    return loader.state_dict()


def test_length_is_that_of_the_plan(loader: Loader) -> None:
    assert len(loader) == len(targets(loader)) == BATCHES


def test_epoch_may_be_set_after_iter(loader: Loader) -> None:
    iterator = iter(loader)
    loader.batch_sampler.sampler.set_epoch(2)
    assert [batch.target.tolist() for batch in iterator] == targets(make(epoch=2))


def test_state_counts_the_batches_given_out(loader: Loader) -> None:
    states = [loader.state_dict()["position"] for _ in loader]
    assert states == [1, 2, 3, 4]
    assert left_at(3, epoch=5) == {"epoch": 5, "position": 3}


@pytest.mark.parametrize("position", range(BATCHES))
def test_goes_on_where_it_was_left(position: int) -> None:
    loader = make(epoch=1)
    loader.load_state_dict(left_at(position, epoch=1))
    assert targets(loader) == targets(make(epoch=1))[position:]
    assert targets(loader) == targets(make(epoch=1)), "only the first iteration goes on"


def test_counts_on_from_where_it_was_left() -> None:
    loader = make(epoch=1)
    loader.load_state_dict(left_at(2, epoch=1))
    next(iter(loader))
    assert loader.state_dict() == {"epoch": 1, "position": 3}


def test_finished_epoch_starts_anew() -> None:
    loader = make(epoch=1)
    loader.load_state_dict(left_at(BATCHES, epoch=1))
    assert targets(loader) == targets(make(epoch=1))


def test_another_epoch_starts_at_its_beginning() -> None:
    loader = make(epoch=2)
    loader.load_state_dict(left_at(2, epoch=1))
    assert targets(loader) == targets(make(epoch=2))


def test_state_before_the_first_batch_after_a_restart_is_what_was_loaded(loader: Loader) -> None:
    state = left_at(2, epoch=3)
    loader.load_state_dict(state)
    iter(loader)
    assert loader.state_dict() == state


def test_iteration_after_one_that_was_broken_off_starts_at_the_beginning(loader: Loader) -> None:
    next(iter(loader))
    assert targets(loader) == targets(make())
