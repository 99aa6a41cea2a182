from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from kd_lightning.cli.sweep_file import cells, read_sweep, short_names

CONFIGS = Path(__file__).parents[2] / "configs"
GRID: dict[str, Any] = {
    "command": ["kd-lightning", "fit", "--config=c.yaml", "${args}"],
    "method": "grid",
    "metric": {"name": "val/top1", "goal": "maximize"},
    "parameters": {"model.criteria.kd.weight": {"values": [0.1, 0.9]}, "trainer.max_epochs": {"value": 3}},
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(GRID | changes))
    return path


def test_a_file_is_read_as_a_grid(tmp_path: Path) -> None:
    sweep = read_sweep(written(tmp_path))
    assert sweep.name == "mine"
    assert sweep.line == ["--config=c.yaml", "--trainer.max_epochs=3"]
    assert sweep.parameters == {"model.criteria.kd.weight": [0.1, 0.9]}
    assert (sweep.metric, sweep.largest) == ("val/top1", True)
    assert read_sweep(written(tmp_path, name="other")).name == "other"


def test_without_a_goal_the_smallest_is_the_best_as_in_wandb(tmp_path: Path) -> None:
    assert not read_sweep(written(tmp_path, metric={"name": "val/loss"})).largest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "bayes"}, "method must be grid, got bayes"),
        ({"command": ["kd-lightning", "test", "${args}"]}, "command must be kd-lightning, fit"),
        ({"command": ["kd-lightning", "fit"]}, r"last \$\{args\}"),
        ({"command": None}, r"got \[\]"),
        ({"command": "kd-lightning fit ${args}"}, r"command must be .*, got kd-lightning fit \$\{args\}"),
        ({"metric": None}, "metric must be"),
        ({"metric": "val/top1"}, "metric must be {name: FIGURE.*, got val/top1"),
        ({"metric": {"goal": "maximize"}}, "metric must be"),
        ({"metric": {"name": "a", "goal": ["maximize"]}}, "metric must be"),
        ({"metric": {"name": "a", "goal": "largest"}}, "maximize or minimize"),
        ({"parameters": {"a.b": {"min": 0, "max": 1}}}, r"parameters.a.b must have a list of values or a value"),
        ({"parameters": {"a.b": {"values": []}}}, "parameters.a.b must have a list of values"),
        (
            {"parameters": {"a.b": {"values": 3}}},
            "parameters.a.b must have a list of values or a value, got {'values': 3}",
        ),
        ({"parameters": {"a.b": {"values": "abc"}}}, "parameters.a.b must have a list of values"),
        ({"parameters": {"a.b": {"values": [1], "value": 1}}}, "parameters.a.b must have a list of values"),
        ({"parameters": {"lr": 0.1}}, "parameters.lr must have a list of values or a value, got 0.1"),
        ({"parameters": ["a"]}, r"parameters must be keys with what each may be, got \['a'\]"),
        ({"parameters": {"a.b": {"value": 1}}}, "one with values"),
        ({"parameters": None}, "one with values"),
    ],
)
def test_what_is_no_grid_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_sweep(written(tmp_path, **changes))


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (["m.kd.loss.init_args.temperature", "m.kd.weight"], ["temperature", "weight"]),
        (["m.ce.weight", "m.kd.weight", "t.max_epochs"], ["ce.weight", "kd.weight", "max_epochs"]),
        (["m.loss.init_args.t", "m.init_args.loss.t"], ["m.loss.t", "m.loss.t"]),
        (["a.b", "b"], ["a.b", "b"]),
    ],
)
def test_names_are_as_short_as_they_can_be(keys: list[str], names: list[str]) -> None:
    assert list(short_names(keys).values()) == names


def test_a_cell_is_named_by_its_values() -> None:
    grid = cells({"m.kd.weight": [0.1, 0.9], "data.root": ["a/b c", None]})
    assert [cell.name for cell in grid] == [
        f"weight={weight},root={root}" for weight in (0.1, 0.9) for root in ("a-b-c", "None")
    ]
    with pytest.raises(ValueError, match="two runs would have the name root=a-b"):
        cells({"data.root": ["a/b", "a-b"]})


def test_options_are_those_of_wandbs_agents() -> None:
    (cell, _) = cells({"m.kd.weight": [0.1], "trainer.precision": ["bf16-mixed"], "data.flip": [True, False]})
    command = {"args": {key: {"value": value} for key, value in cell.parameters.items()}}
    assert cell.options() == create_sweep_command_args(command)["args"]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("sweep/*.yaml")), ids=lambda path: path.stem)
def test_a_sweep_of_the_package_is_about_temperature_and_alpha(path: Path) -> None:
    sweep = read_sweep(path)
    assert sweep.name == path.stem
    assert [*short_names(list(sweep.parameters)).values()] == ["temperature", "weight"]
    assert sweep.parameters["model.criteria.kd.weight"] == [0.5, 0.8, 0.9, 0.95]
