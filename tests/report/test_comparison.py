"""What a report says of runs, before it is drawn."""

import json
from typing import Any

import pytest

from kd_lightning.report.comparison import compare, difference
from kd_lightning.report.methods import Method

RIGHT = [0, 1, 2, 0, 1]


def seeded(run: Any, seed: int) -> Any:
    return run._replace(config={**run.config, "seed_everything": seed})


def test_runs_that_differ_in_their_seed_are_one_method(make: Any) -> None:
    alone = [seeded(make(f"alone-seed{seed}", [0, 1, 2, 1, seed]), seed) for seed in (0, 1)]
    kd = [seeded(make(f"kd-seed{seed}", [0, 1, 2, 0, 2 - seed], RIGHT), seed) for seed in (0, 1)]
    report = compare([*alone, *kd])
    assert [(row.method.name, len(row.method.runs)) for row in report.rows] == [("alone", 2), ("kd", 2)]
    (apart,) = report.differences
    assert (apart.first, apart.second) == ("kd", "alone")
    assert apart.interval.difference == pytest.approx((0.8 + 1.0) / 2 - (0.6 + 0.8) / 2)
    assert "seeds" in apart.interval.how


def test_students_that_differ_are_not_set_against_each_other(make: Any) -> None:
    report = compare([make("small", RIGHT), make("large", RIGHT, student={"name": "large"})])
    assert report.differences == []
    assert list(report.tables()) == ["What it reaches", "What it costs"]


def test_single_runs_are_compared_over_their_images(make: Any) -> None:
    one, other = Method("one", [make("one", RIGHT)]), Method("other", [make("other", [0, 1, 2, 1, 2])])
    found = difference(one, other)
    assert found is not None
    assert found.interval.difference == pytest.approx(0.4)
    assert "images" in found.interval.how
    shorter = other.runs[0]._replace(target=other.runs[0].target[:4])
    assert difference(one, Method("other", [shorter])) is None


def test_seeds_are_compared_over_the_same_images_alone(make: Any) -> None:
    one, other = (Method(name, [make(f"{name}{seed}", RIGHT) for seed in (0, 1)]) for name in ("one", "other"))
    assert difference(one, other) is not None
    elsewhere = [run._replace(target=run.target.flip(0)) for run in other.runs]
    assert difference(one, Method("other", elsewhere)) is None


def test_what_is_written_is_complete(make: Any) -> None:
    report = compare([make("alone", [0, 1, 2, 1, 2]), make("kd", [0, 1, 2, 0, 2], RIGHT)])
    plain = json.loads(json.dumps(report.as_json()))
    assert list(plain["methods"]) == ["alone", "kd"]
    assert plain["differences"][0]["first"] == "kd"
    assert plain["flags"]["kd"][0]["name"] == "teacher close to the student"
    text = report.as_markdown()
    assert text.index("## What it reaches") < text.index("## What it costs") < text.index("## Worth a look")
    assert "| kd | 1 | 80.00 |" in text


def test_the_checkpoint_is_told(make: Any) -> None:
    report = compare([make("alone", RIGHT)], "best")
    assert report.as_json()["checkpoint"] == "best"
    assert report.as_markdown().startswith("Tested at the best checkpoint of each run.\n\n## What it reaches")


def test_parts_have_a_table_where_there_are_some(make: Any) -> None:
    parts = {"head": [0, 1, 2, 1, 2], "both": RIGHT}
    report = compare([make("alone", RIGHT), make("deit", RIGHT, parts=parts, rate=1)])
    table = report.tables()["What its parts reach"]
    assert [cells[:2] for cells in table.rows] == [["deit: head", "60.00"], ["deit: both", "100.00"]]
    assert "| deit: head | 60.00 |" in report.as_markdown()


def test_soft_targets_are_looked_at_where_they_are_learnt(make: Any) -> None:
    kd = make("kd", [0, 1, 2, 0, 2], RIGHT)
    kd = kd._replace(teacher=kd.teacher * 10)  # as sure as can be
    names = {
        temperature: [flag.name for flag in compare([kd._replace(temperature=temperature)]).flags["kd"]]
        for temperature in (None, 1.0, 100.0)
    }
    assert "near one-hot soft targets" in names[1.0]
    assert "near one-hot soft targets" not in names[None] + names[100.0]
    smoothed = kd._replace(teacher=kd.teacher / 20)
    names = {
        learnt: [flag.name for flag in compare([smoothed._replace(soft_targets=learnt)]).flags["kd"]]
        for learnt in (False, True)
    }
    assert "flattened soft targets" in names[True]
    assert "flattened soft targets" not in names[False]


def test_peers_that_differ_are_not_set_against_each_other(make: Any) -> None:
    a, b = ({"a": {"network": {"name": name}}} for name in ("small", "large"))
    runs = [make("one", RIGHT, peers=a), make("other", RIGHT, peers=b), make("third", RIGHT, peers=a, weight=2)]
    assert [(each.first, each.second) for each in compare(runs).differences] == [("third", "one")]
