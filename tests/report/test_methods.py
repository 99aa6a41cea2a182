"""What methods reach over their seeds, against figures computed by hand."""

import json
import math
from typing import Any

import pytest

from kd_lightning.report.methods import Method, Statistic, as_json, figures_of, gap_recovered, over_seeds, rows

RIGHT = [0, 1, 2, 0, 1]


def test_mean_and_sample_deviation_by_hand() -> None:
    figure = Statistic([0.5, 0.6, 0.7])
    assert figure.mean == pytest.approx(0.6)
    assert figure.std == pytest.approx(0.1)
    assert Statistic([0.5]).std == 0.0


@pytest.mark.parametrize(
    ("student", "alone", "teacher", "expected"),
    [(0.7, 0.6, 0.8, 0.5), (0.5, 0.6, 0.8, -0.5), (0.9, 0.6, 0.8, 1.5), (0.7, 0.8, 0.8, None), (0.7, 0.9, 0.8, None)],
)
def test_the_share_of_the_gap(student: float, alone: float, teacher: float, expected: float | None) -> None:
    assert gap_recovered(student, alone, teacher) == (expected if expected is None else pytest.approx(expected))


def test_the_figures_of_a_run_by_hand(make: Any) -> None:
    figures = figures_of(make("r", [0, 1, 2, 1, 2], RIGHT, best=0.8))
    assert figures["top1"] == pytest.approx(0.6)
    assert figures["agreement"] == pytest.approx(0.6)
    assert figures["teacher_top1"] == 1.0
    assert figures["best_top1"] == 0.8
    likely = math.exp(5) / (math.exp(5) + 2)
    unlikely = 1 / (math.exp(5) + 2)
    # The two distributions differ where the decisions do: in two images of five, and there in two classes.
    assert figures["teacher_kl"] == pytest.approx(0.4 * (likely - unlikely) * 5, rel=1e-5)
    assert figures["ece"] == pytest.approx(abs(likely - 0.6), rel=1e-5)


def test_a_figure_that_a_run_lacks_is_not_averaged_in() -> None:
    found = over_seeds([{"a": 1.0, "b": 2.0}, {"a": 3.0}])
    assert {name: figure.values for name, figure in found.items()} == {"a": [1.0, 3.0], "b": [2.0]}


def test_the_comparison_by_hand(make: Any) -> None:
    alone = Method("alone", [make("a0", [0, 1, 2, 1, 2]), make("a1", [0, 1, 1, 1, 2])])
    kd = Method("kd", [make("k0", [0, 1, 2, 0, 2], RIGHT), make("k1", [0, 1, 2, 1, 2], RIGHT)])
    other = Method("other", [make("o", RIGHT, RIGHT, student={"name": "another"})])
    first, second, third = rows([alone, kd, other])
    assert (first.figures["top1"].mean, second.figures["top1"].mean) == (pytest.approx(0.5), pytest.approx(0.7))
    assert first.gap_recovered is None
    assert second.gap_recovered == pytest.approx((0.7 - 0.5) / (1.0 - 0.5))
    assert third.gap_recovered is None, "the student alone is another network"
    assert (first.compression, second.compression) == (None, 10.0)
    assert second.speedup == {"cpu, batch 1": 2.0, "cpu, batch 64": 10.0}


def test_the_student_alone_is_the_best_one_whatever_the_order(make: Any) -> None:
    worse, better = Method("w", [make("w", [0, 1, 1, 1, 2])]), Method("b", [make("b", [0, 1, 2, 1, 2])])
    kd = Method("kd", [make("k", [0, 1, 2, 0, 2], RIGHT)])
    for order in ([worse, better, kd], [better, worse, kd], [kd, better, worse]):
        (row,) = (row for row in rows(order) if row.method is kd)
        assert row.gap_recovered == pytest.approx((0.8 - 0.6) / (1.0 - 0.6))


def test_a_student_alone_that_was_tested_on_other_images_says_nothing_of_the_gap(make: Any) -> None:
    alone, kd = make("a", [0, 1, 2, 1, 2]), make("k", [0, 1, 2, 0, 2], RIGHT)
    other = alone._replace(target=alone.target.flip(0))
    assert rows([Method("alone", [other]), Method("kd", [kd])])[1].gap_recovered is None


def test_the_figures_of_parts_by_hand(make: Any) -> None:
    heads = [0, 1, 2, 1, 2], [0, 1, 1, 1, 2]
    (row,) = rows([Method("deit", [make("r", RIGHT, parts={"head": decisions}) for decisions in heads])])
    assert row.parts["head"]["top1"].values == pytest.approx([0.6, 0.4])
    plain = json.loads(json.dumps(as_json(row)))
    assert plain["parts"]["head"]["top1"]["mean"] == pytest.approx(0.5)
    assert "ece" in plain["parts"]["head"]


def test_plain_numbers_survive_json(make: Any) -> None:
    (row,) = rows([Method("kd", [make("k", RIGHT, RIGHT)])])
    plain = json.loads(json.dumps(as_json(row)))
    assert plain["figures"]["top1"] == {"mean": 1.0, "std": 0.0, "values": [1.0]}
    assert plain["teacher"]["params"] == 1000
    assert plain["gap_recovered"] is None
