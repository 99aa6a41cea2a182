"""Names give the same numbers everywhere, spread evenly, and nothing else moves."""

import math
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest
from torch import Tensor

from kd_lightning.seeds import MASK, below, hashed, hashed_int, lowbias32, run_seed, seeded, uniform

ROWS = torch.arange(50_000)
UNLIKELY = 1e-4  # no draw is repeated, so a test either always holds or never does


def lowbias32_of_int(x: int) -> int:
    """Wellons' lowbias32 in unbounded integers."""
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


def hashed_of_ints(*names: int | str) -> int:
    h = 0
    for name in names:
        lane = zlib.crc32(name.encode()) if isinstance(name, str) else name
        h = lowbias32_of_int((h * 0x9E3779B1 + lane + 1) % 2**32)
    return h


def cells(*draws: tuple[Tensor, int]) -> Tensor:
    """How often each combination of draws, given with their bounds, came up."""
    place = torch.zeros_like(draws[0][0])
    for draw, bound in draws:
        place = place * bound + draw
    return torch.bincount(place, minlength=math.prod(bound for _, bound in draws))


@given(st.integers(0, MASK))
def test_lowbias32_in_unbounded_integers(x: int) -> None:
    assert int(lowbias32(torch.tensor(x))) == lowbias32(x) == lowbias32_of_int(x)
    assert lowbias32(np.array([x], dtype=np.uint32)).tolist() == [lowbias32_of_int(x)]


def test_lowbias32_is_a_bijection_where_looked_at() -> None:
    lanes = torch.cat([torch.arange(1 << 16), torch.arange(1 << 16) << 16, MASK - torch.arange(1 << 16)])
    assert len(set(lowbias32(lanes).tolist())) == len(set(lanes.tolist()))


@given(st.lists(st.one_of(st.integers(-(2**40), 2**40), st.text(max_size=5)), min_size=1, max_size=5))
def test_hash_in_unbounded_integers(names: list[int | str]) -> None:
    assert int(hashed(*names)) == hashed_int(*names) == hashed_of_ints(*names)


def test_hash_of_tensors_is_that_of_their_elements() -> None:
    index, number = torch.tensor([[0], [7], [2**31]]), torch.tensor([0, 3])
    found = hashed(5, "default", index, number)
    assert found.tolist() == [[hashed_of_ints(5, "default", i, n) for n in (0, 3)] for i in (0, 7, 2**31)]
    assert found.dtype == torch.int64


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        ((), 0),
        ((3, "crop", -5, 2**40), 3207344177),
        ((torch.tensor(7),), 3931332538),
        ((0, torch.tensor(0), "", torch.tensor([9])), [4235150670]),
        ((torch.tensor(4), torch.tensor([1, 2]), 1), [852365334, 2788218419]),
        ((torch.tensor([0, 5]), "lambda"), [2218154278, 4115009673]),
        (
            (3, "order", torch.tensor([0, 1, 2**31, -1, 2**62]), "flip", -4),
            [1275408180, 2134272071, 733941985, 1600679317, 1275408180],
        ),
        (
            ("a", torch.tensor([[0], [7]]), 2**40, torch.tensor([1, 2])),
            [[2402481167, 2350486737], [1673763112, 1825988697]],
        ),
    ],
    ids=str,
)
def test_hashes_stay_what_they_are(names: tuple[int | str | Tensor, ...], wanted: int | list[int]) -> None:
    found = hashed(*names)
    assert found.tolist() == wanted
    assert found.dtype == torch.int64


PLAIN_NAMES = st.one_of(st.integers(-(2**63), 2**63 - 2), st.text(max_size=5))
LANES = st.one_of(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=3, max_size=3), st.integers(-(2**63), 2**63 - 1))


@given(st.lists(st.one_of(PLAIN_NAMES, LANES.map(torch.tensor)), min_size=1, max_size=6))
def test_hash_of_any_mixture_of_names(names: list[int | str | Tensor]) -> None:
    before = [name.clone() if isinstance(name, Tensor) else name for name in names]
    found = hashed(*names)
    places = [name.expand(3).tolist() if isinstance(name, Tensor) else [name] * 3 for name in names]
    assert found.expand(3).tolist() == [hashed_of_ints(*parts) for parts in zip(*places, strict=True)]
    assert found.dtype == torch.int64
    for name, kept in zip(names, before, strict=True):
        assert torch.equal(name, kept) if isinstance(name, Tensor) and isinstance(kept, Tensor) else name == kept


def test_hash_of_no_elements() -> None:
    assert hashed(1, "order", torch.empty(0, 2, dtype=torch.int64), 3).shape == (0, 2)


def test_order_and_number_of_names_matter() -> None:
    assert len({int(hashed(*names)) for names in [(1, 2), (2, 1), (1, 2, 0), (0, 1, 2), (1, "2")]}) == 5


def test_rows_have_different_hashes() -> None:
    assert len(set(hashed(0, "order", 3, ROWS).tolist())) == len(ROWS)


def test_uniform_is_uniform_and_below_one() -> None:
    draws = uniform(1, "level", ROWS)
    assert draws.dtype == torch.float32
    assert float(draws.min()) >= 0
    assert float(draws.max()) < 1
    assert kstest(draws.double().numpy(), "uniform").pvalue > UNLIKELY


def test_uniform_is_below_one_for_the_largest_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd_lightning.seeds.hashed", lambda *names: torch.tensor(MASK))
    assert float(uniform(0)) == 1 - 2**-24
    assert int(below(1 << 24, 0)) == (1 << 24) - 1


@pytest.mark.parametrize("bound", [1, 2, 81, 1000])
def test_below_is_uniform(bound: int) -> None:
    counts = cells((below(bound, 3, ROWS), bound))
    assert len(counts) == bound
    assert bound == 1 or chisquare(counts).pvalue > UNLIKELY


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((0, "default", ROWS, 0), (0, "default", ROWS, 1)),
        ((0, "default", ROWS, 0), (0, "default", ROWS + 1, 0)),
        ((0, "default", ROWS, 0), (1, "default", ROWS, 0)),
        ((0, "default", ROWS, 0), (0, "other", ROWS, 0)),
        ((0, "default", ROWS, 0, "crop"), (0, "default", ROWS, 0, "flip")),
    ],
    ids=["number", "index", "seed", "view", "purpose"],
)
def test_draws_of_different_names_are_independent(
    first: tuple[int | str | Tensor, ...], second: tuple[int | str | Tensor, ...]
) -> None:
    assert chisquare(cells((below(9, *first), 9), (below(9, *second), 9))).pvalue > UNLIKELY


@pytest.mark.parametrize("bound", [0, -3, (1 << 24) + 1])
def test_bound_out_of_range(bound: int) -> None:
    with pytest.raises(ValueError, match=rf"^bound must be in 1 … 2\^24, got {bound}$"):
        below(bound, 0)


def test_run_seed_is_what_seed_everything_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert run_seed() == 17


def test_run_seed_is_torchs_where_nothing_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    torch.manual_seed(2**40 + 5)
    assert run_seed() == 5


def test_seeded_draws_by_name_and_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    with seeded(3, "student") as seed:
        first = torch.rand(4)
    with seeded(3, "student"):
        again = torch.rand(4)
    with seeded(3, "peer"):
        other = torch.rand(4)
    assert seed == hashed_of_ints(3, "student")
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_leaves_the_generator_alone_after_an_error() -> None:
    def draw_and_fail() -> None:
        with seeded(0):
            torch.rand(3)
            raise KeyError

    before = torch.get_rng_state()
    with pytest.raises(KeyError):
        draw_and_fail()
    assert torch.equal(torch.get_rng_state(), before)
