"""Which runs are one method: from configurations that the command line wrote, and changes to them."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_lightning.cli.commands import run
from kd_lightning.report.grouping import by_method, recipe_of

CONFIGS = Path(__file__).parents[2] / "configs/digits"
QUIET = (
    *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"),
    *("--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"),
)
UNEXAMINED = "--model.teacher.check=false"
Configs = dict[str, dict[str, Any]]


def fit(config: str, experiment: str, name: str, seed: int, *options: str) -> Path:
    line = ["fit", "--config", str(CONFIGS / config), "--experiment", experiment, "--run", name, *QUIET, *options]
    assert run([*line, "--seed_everything", str(seed)]) == 0
    return Path("runs", experiment, name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two teachers with different seeds, and a third with another rate; a student of each."""
    root = tmp_path_factory.mktemp("grouping")
    weights = "--model.teacher.network.weights="
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for seed in (0, 1):
            teacher = fit("supervised/teacher.yaml", "teacher", f"t{seed}", seed)
            student = fit("offline/kd.yaml", "kd", f"k{seed}", seed + 10, weights + str(teacher), UNEXAMINED)
        for path, old, new in ((teacher, "lr: 0.1", "lr: 0.2"), (student, str(teacher), "runs/teacher/t2")):
            text = (path / "config.yaml").read_text()
            assert text.count(old) == 1
            other = path.with_name(f"{path.name[0]}2")
            other.mkdir()
            (other / "config.yaml").write_text(text.replace(old, new))
    return root


@pytest.fixture
def written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Configs:
    monkeypatch.chdir(folder)
    return {str(path.parent): yaml.safe_load(path.read_text()) for path in sorted(Path("runs").glob("*/*/config.yaml"))}


def test_seeds_of_a_run_and_of_its_teacher_make_no_other_method(written: Configs) -> None:
    groups = list(by_method(written).values())
    assert groups == [
        ["runs/kd/k0", "runs/kd/k1"],
        ["runs/kd/k2"],
        ["runs/teacher/t0", "runs/teacher/t1"],
        ["runs/teacher/t2"],
    ]


def test_a_method_is_named_by_its_experiment_and_what_differs_within(written: Configs) -> None:
    assert list(by_method(written)) == [
        "kd (optimizer.lr 0.1)",
        "kd (optimizer.lr 0.2)",
        "teacher (optimizer.lr 0.1)",
        "teacher (optimizer.lr 0.2)",
    ]
    same = {path: config for path, config in written.items() if not path.endswith("2")}
    assert by_method(same) == {"kd": ["runs/kd/k0", "runs/kd/k1"], "teacher": ["runs/teacher/t0", "runs/teacher/t1"]}


def test_a_teacher_that_is_not_there_is_what_its_path_says(
    written: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    students = {path: config for path, config in written.items() if "kd" in path}
    assert len(by_method(students)) == 3


@pytest.mark.parametrize("suffix", ["@epoch=1", "#peer=small"])
def test_a_part_of_a_run_is_another_teacher_and_the_same_part_of_the_same_recipe_is_not(
    written: Configs, suffix: str
) -> None:
    configs = {name: copy.deepcopy(written[f"runs/kd/{name}"]) for name in ("k0", "k1")}
    networks = [config["model"]["init_args"]["teacher"]["init_args"]["network"] for config in configs.values()]
    networks[0]["weights"] += suffix
    assert len(by_method(configs)) == 2
    networks[1]["weights"] += suffix
    assert len(by_method(configs)) == 1


def test_a_run_that_names_itself_ends(tmp_path: Path) -> None:
    config = {"model": {"class_path": "C", "init_args": {"student": {"weights": str(tmp_path)}}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert by_method({"one": config}) == {"one": ["one"]}


def changed(config: Mapping[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A copy with another value at a place."""
    made: dict[str, Any] = copy.deepcopy(dict(config))
    node, *rest = made, *place.split(".")
    for key in rest[:-1]:
        node = node[key]
    node[rest[-1]] = value
    return made


@pytest.mark.parametrize(
    ("place", "value", "other"),
    [
        ("seed_everything", 7, False),
        ("experiment", "again", False),
        ("data.init_args.seed", 3, False),
        ("trainer.logger", {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {}}, False),
        ("trainer.default_root_dir", "elsewhere", False),
        ("trainer.enable_progress_bar", True, False),
        ("trainer.callbacks", [{"class_path": "lightning.pytorch.callbacks.RichProgressBar"}], False),
        ("trainer.callbacks", {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}, False),
        ("trainer.callbacks", [{"class_path": "kd_lightning.callbacks.Progress"}], False),
        ("trainer.callbacks", [{"class_path": "kd_lightning.callbacks.wandb_report.WandbReport"}], False),
        ("checkpoints.keep_every_epochs", 5, False),
        ("trainer.callbacks", [{"class_path": "kd_lightning.callbacks.StudentEMA"}], True),
        ("trainer.devices", 2, True),
        ("trainer.max_epochs", 5, True),
        ("model.init_args.criteria.kd.weight", 0.5, True),
        ("model.init_args.student.kwargs.widths", [2, 2, 4, 16], True),
        ("data.init_args.mixing", {"class_path": "kd_lightning.datamodules.Mixup"}, True),
    ],
)
def test_what_makes_another_method(written: Configs, place: str, value: Any, other: bool) -> None:
    config = written["runs/kd/k0"]
    before = copy.deepcopy(config)
    assert len(by_method({"a": config, "b": changed(config, place, value)})) == 1 + other
    assert config == before


def test_the_same_configuration_without_settings_that_are_left_out(written: Configs) -> None:
    recipe = recipe_of(written["runs/kd/k0"])
    assert recipe["model"]["init_args"]["teacher"]["init_args"]["network"]["weights"]["run"] == recipe_of(
        written["runs/teacher/t1"]
    )
    assert "seed_everything" not in recipe
    assert recipe["trainer"]["max_epochs"] == 1
