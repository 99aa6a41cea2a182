"""What methods are called."""

from typing import Any

import pytest

from kd_lightning.report.grouping import by_method
from kd_lightning.report.naming import differing

STAMP = "2025-03-01-120000"


def config(experiment: str | None = None, scheme: str = "OfflineDistiller", **criteria: float) -> dict[str, Any]:
    terms = {name: {"weight": weight} for name, weight in criteria.items()}
    return {
        "experiment": experiment,
        "model": {"class_path": f"kd_lightning.distillers.{scheme}", "init_args": {"criteria": terms}},
    }


@pytest.mark.parametrize(
    ("configs", "names"),
    [
        ({"a/1": config("kd", kd=1)}, ["kd"]),
        ({"kd/1": config("kd", kd=1), "at/1": config("at", at=1)}, ["kd", "at"]),
        ({"c/kd-seed1": config("c", kd=1), "c/at-seed1": config("c", at=1)}, ["kd", "at"]),
        ({"c/kd_1": config("c", kd=1), "c/kd_12": config("c", kd=1), "c/at": config("c", at=1)}, ["kd", "at"]),
        ({"c/resnet8": config("c", kd=1), "c/resnet20": config("c", at=1)}, ["resnet8", "resnet20"]),
        (
            {f"c/{STAMP}-seed0": config("c", ce=1, kd=1), f"c/{STAMP}-seed1": config("c", ce=1, at=1)},
            ["ce+kd", "ce+at"],
        ),
        (
            {f"{STAMP}-seed0": config(scheme="Classifier"), f"{STAMP}-seed1": config(ce=1, at=1)},
            ["Classifier", "ce+at"],
        ),
        (
            {f"{STAMP}-seed0": config("c", kd=1), f"{STAMP}-seed1": config("c", kd=2)},
            ["c (kd.weight 1)", "c (kd.weight 2)"],
        ),
        (
            {"x/1": config("c", kd=1), "x/2": config("c", kd=2), "x/3": config("d", kd=3)},
            ["c (kd.weight 1)", "c (kd.weight 2)", "d"],
        ),
    ],
)
def test_the_shortest_name_that_tells_all_apart(configs: dict[str, Any], names: list[str]) -> None:
    assert list(by_method(configs)) == names


def test_one_setting_that_tells_all_apart_is_enough() -> None:
    settings = [
        {("a", "b"): "1", ("c",): str(number // 2), ("d", "init_args", "e"): str(number)} for number in range(4)
    ]
    assert differing(settings) == ["d.e 0", "d.e 1", "d.e 2", "d.e 3"]


def test_several_settings_where_one_is_not_enough() -> None:
    settings = [{("a",): "1"}, {("a",): "2"}, {("a",): "2", ("b",): "x"}]
    assert differing(settings) == ["a 1, b none", "a 2, b none", "a 2, b x"]


def test_a_single_method_needs_no_setting() -> None:
    assert differing([{("a",): "1"}]) == [""]
