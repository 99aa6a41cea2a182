import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from kd_lightning.ranks import gathered, is_distributed, summed

RANK = '''
"""Gather and sum on one of two ranks, and write what came of it."""
import sys

import torch
import torch.distributed as dist

from kd_lightning.ranks import gathered, is_distributed, summed

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
asked = torch.full((2, 3), rank + 1.5, dtype=torch.float64, requires_grad=True)
own = torch.tensor([1.0 + rank, 10.0])
seen = {
    "distributed": torch.tensor(is_distributed()),
    "uneven": gathered(torch.arange(6 - 2 * rank).view(-1, 2) + 100 * rank),
    "first empty": gathered(torch.full((2 * rank, 3), 7.0)),
    "second empty": gathered(torch.full((2 - 2 * rank,), 7.0)),
    "both empty": gathered(torch.zeros(0, 3)),
    "double": gathered(asked),
    "half": gathered(torch.full((1 + rank, 2, 2), rank + 0.5, dtype=torch.float16)),
    "not contiguous": gathered((torch.arange(6).view(2, 3) + 10 * rank).T[: 2 + rank]),
    "sum": summed(own),
    "own": own,
    "sum of asked": summed(asked),
}
assert not any(value.requires_grad for value in seen.values())
torch.save(seen, f"{folder}/{rank}.pt")
dist.barrier()
dist.destroy_process_group()
'''


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What each of two ranks saw."""
    folder = tmp_path_factory.mktemp("gather")
    (folder / "rank.py").write_text(RANK)
    commands = [[sys.executable, str(folder / "rank.py"), rank, str(folder)] for rank in ("0", "1")]
    ranks = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(error[-3000:] for error in errors)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture
def world_of_one(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_both_ranks_know_of_one_another(seen: list[dict[str, Tensor]]) -> None:
    assert all(rank["distributed"].item() for rank in seen)


def test_both_ranks_have_the_same(seen: list[dict[str, Tensor]]) -> None:
    for name, value in seen[0].items():
        if name != "own":
            torch.testing.assert_close(value, seen[1][name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("uneven", torch.tensor([[0, 1], [2, 3], [4, 5], [100, 101], [102, 103]])),
        ("first empty", torch.full((2, 3), 7.0)),
        ("second empty", torch.full((2,), 7.0)),
        ("both empty", torch.zeros(0, 3)),
        ("double", torch.tensor([[1.5] * 3, [1.5] * 3, [2.5] * 3, [2.5] * 3], dtype=torch.float64)),
        ("half", torch.tensor([0.5, 1.5, 1.5], dtype=torch.float16)[:, None, None].expand(3, 2, 2)),
        ("not contiguous", torch.tensor([[0, 3], [1, 4], [10, 13], [11, 14], [12, 15]])),
    ],
)
def test_rows_come_in_the_order_of_the_ranks(seen: list[dict[str, Tensor]], name: str, expected: Tensor) -> None:
    torch.testing.assert_close(seen[0][name], expected, rtol=0, atol=0)


def test_sums_are_over_the_ranks(seen: list[dict[str, Tensor]]) -> None:
    assert seen[0]["sum"].tolist() == [3.0, 20.0]
    assert seen[0]["sum of asked"].tolist() == [[4.0] * 3] * 2


def test_what_is_summed_is_left_alone(seen: list[dict[str, Tensor]]) -> None:
    assert [rank["own"].tolist() for rank in seen] == [[1.0, 10.0], [2.0, 10.0]]


def check_one_rank() -> None:
    assert not is_distributed()
    rows = torch.randn(3, 2).double().requires_grad_()
    for made in (gathered(rows), summed(rows)):
        assert torch.equal(made, rows)
        assert made.dtype == torch.float64
        assert not made.requires_grad
    assert gathered(torch.zeros(0, 4)).shape == (0, 4)


def test_one_process_has_its_own_rows() -> None:
    assert "RANK" not in os.environ
    check_one_rank()


def test_a_world_of_one_has_its_own_rows(world_of_one: None) -> None:
    assert dist.is_initialized()
    check_one_rank()


def test_a_sum_can_be_written_to() -> None:
    values = torch.ones(3)
    summed(values).zero_()
    assert values.tolist() == [1, 1, 1]
