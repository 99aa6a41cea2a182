"""Each sample once an epoch, in an order that neither ranks nor restarts change."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from kd_lightning.datamodules.plan import EpochPlan


def batches(plan: EpochPlan, position: int = 0) -> list[list[tuple[int, int]]]:
    """The names of each batch."""
    return [list(zip(r.tolist(), n.tolist(), strict=True)) for r, n in plan.batches_from(position)]


def rows_of(count: int) -> Tensor:
    """Row numbers with gaps, as a validation split leaves them."""
    return torch.arange(count) * 3 + 1


@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 4), st.integers(0, 5), st.booleans())
def test_each_sample_once_an_epoch_over_ranks(count: int, per_rank: int, world: int, epoch: int, train: bool) -> None:
    rows, size = rows_of(count), per_rank * world
    try:
        plans = [EpochPlan(rows, size, seed=1, train=train, rank=rank, world=world) for rank in range(world)]
    except ValueError:
        assert train
        assert count < min(size, 2 * world)
        return
    names = []
    for plan in plans:
        plan.set_epoch(epoch)
        names += [name for batch in batches(plan) for name in batch]
    assert len(names) == count - plans[0].dropped
    assert len({row for row, _ in names}) == len(names)
    assert {row for row, _ in names} <= set(rows.tolist())
    assert {number for _, number in names} <= {epoch if train else 0}


@given(st.integers(8, 60), st.integers(2, 6), st.integers(1, 4), st.booleans(), st.integers(1, 3))
def test_ranks_share_the_global_batches_of_one(
    count: int, per_rank: int, world: int, train: bool, repeats: int
) -> None:
    def plan(rank: int, of: int) -> EpochPlan:
        return EpochPlan(rows_of(count), per_rank * world, seed=1, train=train, repeats=repeats, rank=rank, world=of)

    rest = count % (per_rank * world)
    assume(not train or rest == 0 or rest >= 2 * world)  # else one rank keeps a batch that several drop
    shared = [batches(plan(rank, world)) for rank in range(world)]
    whole = batches(plan(0, 1))
    assert {len(part) for part in shared} == {len(whole)}
    for position, batch in enumerate(whole):
        assert [part[position] for part in shared] == [batch[rank::world] for rank in range(world)]


def test_more_ranks_than_samples_leaves_some_nothing_to_evaluate() -> None:
    plans = [EpochPlan(torch.arange(5), 4, seed=0, train=False, rank=rank, world=4) for rank in range(4)]
    assert [[len(batch) for batch in batches(plan)] for plan in plans] == [[1, 1], [1, 0], [1, 0], [1, 0]]


@pytest.mark.parametrize(
    ("count", "size", "world", "train", "drop_last", "sizes", "dropped"),
    [
        (10, 5, 1, True, False, [5, 5], 0),
        (12, 5, 1, True, False, [5, 5, 2], 0),
        (12, 5, 1, True, True, [5, 5], 2),
        (11, 5, 1, True, False, [5, 5], 1),  # BatchNorm cannot train on 1 sample
        (11, 5, 1, False, False, [5, 5, 1], 0),
        (11, 4, 2, True, False, [2, 2], 3),  # 2 on one rank and 1 on the other
        (12, 8, 2, True, False, [4, 2], 0),
        (13, 8, 2, True, False, [4, 3], 0),
        (3, 8, 1, True, False, [3], 0),
        (3, 8, 1, False, False, [3], 0),
    ],
)
def test_last_batch(
    count: int, size: int, world: int, train: bool, drop_last: bool, sizes: list[int], dropped: int
) -> None:
    plan = EpochPlan(torch.arange(count), size, seed=0, train=train, drop_last=drop_last, world=world)
    assert [len(batch) for batch in batches(plan)] == sizes
    assert len(plan) == len(sizes)
    assert plan.dropped == dropped


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        plan = EpochPlan(torch.arange(100), 10, seed=seed, train=True)
        plan.set_epoch(epoch)
        return plan.order()[0].tolist()

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)} | {tuple(range(100))}) == 5


def test_groups_are_shuffled_a_window_at_a_time() -> None:
    rows, groups = torch.arange(10, 40), torch.arange(30) // 3  # ten groups of three
    plan, first = EpochPlan(rows, 6, seed=0, train=True), torch.zeros(10)
    plan.shuffle_within(groups, 4)
    mixed = 0
    for epoch in range(500):
        plan.set_epoch(epoch)
        order = plan.order()[0]
        assert sorted(order.tolist()) == rows.tolist()
        met = groups[order - 10].tolist()
        assert [len(set(met[start : start + 12])) for start in (0, 12, 24)] == [4, 4, 2]
        first[met[0]] += 1
        mixed += len(set(met[:3])) > 1
    assert float(first.min()) > 25  # of 50 expected
    assert mixed > 450


def test_first_place_is_uniform_over_epochs() -> None:
    plan, first = EpochPlan(torch.arange(5), 5, seed=0, train=True), torch.zeros(5)
    for epoch in range(1000):
        plan.set_epoch(epoch)
        first[plan.order()[0][0]] += 1
    assert float(((first - 200) ** 2 / 200).sum()) < 18.5  # chi-square, 4 degrees of freedom, p = 0.001


def test_evaluation_keeps_the_order() -> None:
    plan = EpochPlan(rows_of(5), 2, seed=0, train=False)
    plan.set_epoch(3)
    assert batches(plan) == [[(1, 0), (4, 0)], [(7, 0), (10, 0)], [(13, 0)]]


@pytest.mark.parametrize("position", range(6))
def test_batches_from_a_position(position: int) -> None:
    plan = EpochPlan(torch.arange(23), 5, seed=0, train=True)
    assert batches(plan, position) == batches(plan)[position:]


def test_batches_are_cut_out_where_they_are_wanted() -> None:
    plan = EpochPlan(torch.arange(23), 5, seed=0, train=True)
    parts = [part for batch in plan.batches_from(0, torch.device("meta")) for part in batch]
    assert len(parts) == 10
    assert all(part.is_meta for part in parts)


def test_repeated_augmentation_shows_fewer_samples_in_views_of_their_own() -> None:
    plan = EpochPlan(torch.arange(12), 6, seed=0, train=True, repeats=3)
    seen = []
    for epoch in range(4):
        plan.set_epoch(epoch)
        names = [name for batch in batches(plan) for name in batch]
        assert len(names) == 12
        assert len({row for row, _ in names}) == 4
        assert [number for _, number in names] == [3 * epoch, 3 * epoch + 1, 3 * epoch + 2] * 4
        seen += names
    assert len(set(seen)) == len(seen)


def test_repeats_that_do_not_divide_the_set() -> None:
    names = [name for batch in batches(EpochPlan(torch.arange(7), 7, seed=0, train=True, repeats=3)) for name in batch]
    assert [number for _, number in names] == [0, 1, 2, 0, 1, 2, 0]
    assert [sum(row == found for found, _ in names) for row in dict(names)] == [3, 3, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_batch_size": 0}, r"^global_batch_size must be >= 1, got 0$"),
        ({"repeats": 0}, r"^repeats must be >= 1, got 0$"),
        ({"world": 3}, r"^global_batch_size 4 cannot be split over 3 devices: use a multiple of 3, or .* divides it$"),
        ({"rows": torch.arange(0)}, r"^the training set is empty$"),
        ({"rows": torch.arange(0), "train": False}, r"^the evaluation set is empty$"),
        (
            {"rows": torch.arange(3), "drop_last": True},
            r"^the training set has 3 samples, fewer than one batch of 4: lower data.global_batch_size, or set "
            r"data.drop_last to false$",
        ),
        ({"rows": torch.arange(1)}, r"^the training set has 1 samples, fewer than one batch of 4: "),
    ],
)
def test_faults(options: dict[str, object], message: str) -> None:
    arguments = {"rows": torch.arange(10), "global_batch_size": 4, "seed": 0, "train": True, **options}
    with pytest.raises(ValueError, match=message):
        EpochPlan(**arguments)  # type: ignore[arg-type]


def test_evaluation_batch_need_not_be_split_evenly() -> None:
    plans = [EpochPlan(torch.arange(10), 4, seed=0, train=False, rank=rank, world=3) for rank in range(3)]
    assert sorted(row for plan in plans for batch in batches(plan) for row, _ in batch) == list(range(10))


def test_lightning_finds_set_epoch() -> None:
    plan = EpochPlan(torch.arange(4), 2, seed=0, train=True)
    plan.sampler.set_epoch(4)
    assert plan.epoch == 4
