import json
from pathlib import Path
from typing import Any

import pytest

from kd_lightning.cli.exported_figures import figures_of
from kd_lightning.models.weights import file_sha256
from kd_lightning.run_folder import RunFolder


@pytest.mark.parametrize(
    ("noted", "expected"),
    [
        ({}, ({"test/top1": 0.9}, "")),
        ({"checkpoint_sha256": "0" * 64}, ({}, "")),
        ({"checkpoint_sha256": None}, ({}, "")),
        ({"images": 5}, ({}, " on the whole test set, but on 5 of 9 images")),
        (
            {"stated_otherwise": ["data.class_path", "model.init_args.knn"]},
            ({}, " as it was trained: `data.class_path`, `model.init_args.knn` was stated otherwise"),
        ),
    ],
)
def test_the_figures_are_those_of_a_whole_test_of_this_file(
    tmp_path: Path, noted: dict[str, Any], expected: tuple[dict[str, float], str]
) -> None:
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    run.last.write_text("weights")
    results = {"test/top1": 0.9, "seed": 0, "checkpoint_sha256": file_sha256(run.last), "images": 9}
    run.results.write_text(json.dumps({**results, "stated_otherwise": [], **noted}))
    assert figures_of(run, run.last, 9) == expected


def test_a_run_that_was_not_tested_has_none(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    run.last.write_text("weights")
    assert figures_of(run, run.last, 9) == ({}, "")
    run.results.write_text(json.dumps({"test/top1": 0.9, "checkpoint": "last.ckpt"}))  # of an earlier version
    assert figures_of(run, run.last, 9) == ({}, "")
