"""The comparison of teacher, student alone and student distilled, against figures computed by hand."""

import io
import json
import math

import pytest
from rich.console import Console

from kd_lightning.report.comparison import Row, as_json, as_table, compression, gap_recovered
from kd_lightning.report.cost import Cost

SMALL, LARGE = Cost(params=200, macs=3_000), Cost(params=1_000, macs=50_000)


def rows(teacher: list[float], alone: list[float], distilled: list[float]) -> dict[str, Row]:
    return {"teacher": Row(LARGE, teacher), "alone": Row(SMALL, alone), "distilled": Row(SMALL, distilled)}


def printed(given: dict[str, Row]) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(as_table(given, "title"))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_mean_and_sample_deviation_by_hand() -> None:
    row = Row(SMALL, [0.5, 0.6, 0.7])
    assert row.mean == pytest.approx(0.6)
    assert row.std == pytest.approx(math.sqrt((0.1**2 + 0.1**2) / 2))


def test_a_single_seed_does_not_deviate() -> None:
    assert Row(SMALL, [0.5]).std == 0.0


def test_compression_is_of_parameters() -> None:
    assert compression(rows([0.9], [0.8], [0.85])) == 5.0


@pytest.mark.parametrize(
    ("alone", "distilled", "share"),
    [
        ([0.7, 0.9], [0.8, 0.9], 0.5),
        ([0.8], [0.9], 1.0),
        ([0.8], [0.8], 0.0),
        ([0.8], [0.7], -1.0),
        ([0.8], [1.0], 2.0),
    ],
)
def test_the_share_of_the_gap_is_of_means_and_may_be_negative_or_above_one(
    alone: list[float], distilled: list[float], share: float
) -> None:
    assert gap_recovered(rows([0.9], alone, distilled)) == pytest.approx(share)


@pytest.mark.parametrize("alone", [[0.9], [0.95]])
def test_there_is_no_share_of_no_gap(alone: list[float]) -> None:
    given = rows([0.9], alone, [0.93])
    assert gap_recovered(given) is None
    assert as_json(given)["gap_recovered"] is None
    assert "the teacher is not ahead" in printed(given)


def test_plain_numbers_survive_json() -> None:
    given = rows([0.9, 1.0], [0.7, 0.9], [0.8, 0.9])
    plain = json.loads(json.dumps(as_json(given)))
    assert set(plain) == {"rows", "compression", "gap_recovered"}
    assert list(plain["rows"]) == ["teacher", "alone", "distilled"]
    assert plain["rows"]["alone"] == {
        "params": 200,
        "macs": 3_000,
        "top1_mean": pytest.approx(0.8),
        "top1_std": pytest.approx(math.sqrt(0.02)),
        "top1": [0.7, 0.9],
    }
    assert plain["compression"] == 5.0
    assert plain["gap_recovered"] == pytest.approx(0.05 / 0.15)


def test_the_table_shows_per_cent_with_two_decimals() -> None:
    text = printed(rows([0.9, 1.0], [0.7, 0.9], [0.8, 0.9]))
    line = {name: next(row for row in text.splitlines() if name in row) for name in ("teacher", "alone", "distilled")}
    assert "1,000" in line["teacher"]
    assert "50,000" in line["teacher"]
    assert "95.00 ± 7.07" in line["teacher"]
    assert "80.00 ± 14.14" in line["alone"]
    assert "85.00 ± 7.07" in line["distilled"]
    assert "compression 5.0x, 33% of the gap recovered" in text
