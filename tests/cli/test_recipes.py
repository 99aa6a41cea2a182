"""Recipes: where their files are found, where their runs are, and what happens when they fail."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace

from kd_lightning import trust
from kd_lightning.cli import recipes
from kd_lightning.cli.recipes import found_config, resolve_recipes, run_of_recipe, train

STAND_IN = """#!{python}
import json, os, pathlib, sys
names = ("RANK", "WORLD_SIZE", "SLURM_JOB_ID", "PL_GLOBAL_SEED", "KD_LIGHTNING_RUN", "KD_LIGHTNING_HURRIED", "HOME")
told = {{"arguments": sys.argv[3:], "environment": [name for name in names if name in os.environ]}}
pathlib.Path("told.json").write_text(json.dumps(told))
sys.exit({code})
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe in ``configs/``, seen from a working folder beside it."""
    path = tmp_path / "configs/digits/teacher.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("seed_everything: 0\n")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return path


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Put a program in the place of Python that only notes what it was called with."""
    program = folder / "python"
    program.write_text(STAND_IN.format(python=sys.executable, code=code))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def test_found_in_a_folder_above_the_config(config: Path) -> None:
    beside = config.parents[1] / "offline/kd.yaml"
    assert found_config("configs/digits/teacher.yaml", [beside]) == config
    assert found_config("digits/teacher.yaml", [Path("elsewhere.yaml"), beside]) == config


def test_the_working_folder_comes_first(config: Path) -> None:
    mine = Path("configs/digits/teacher.yaml")
    mine.parent.mkdir(parents=True)
    mine.write_text("seed_everything: 1\n")
    assert found_config(str(mine), [config]) == mine


def test_an_unknown_recipe_is_named(config: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"weights\.recipe: there is no configuration techer\.yaml"):
        found_config("techer.yaml", [config])


def test_an_edited_recipe_is_another_run(config: Path) -> None:
    first = run_of_recipe(config)
    assert first.path.parent == Path("runs/recipes")
    assert run_of_recipe(config) == first
    config.write_text("seed_everything: 1\n")
    second = run_of_recipe(config)
    assert first != second
    assert first.path.name.startswith("teacher-")
    assert run_of_recipe(config, 2).path.name == f"{second.path.name}-2-steps"


def chain(folder: Path) -> tuple[Path, Path]:
    """An assistant that learns from the recipe beside it, and a student that learns from the assistant."""
    links = {"assistant": "digits/teacher.yaml", "student": "configs/digits/assistant.yaml@epoch=3"}
    for name, recipe in links.items():
        (folder / f"{name}.yaml").write_text(f"model: {{teacher: {{weights: {{recipe: '{recipe}'}}}}}}\n")
    return folder / "assistant.yaml", folder / "student.yaml"


def test_an_edited_recipe_of_a_recipe_is_another_run_all_along_the_chain(config: Path) -> None:
    paths = [config, *chain(config.parent)]
    first = [run_of_recipe(path) for path in paths]
    assert [run_of_recipe(path) for path in paths] == first
    config.write_text("seed_everything: 1\n")
    assert all(run_of_recipe(path) != before for path, before in zip(paths, first, strict=True))


def test_a_recipe_that_needs_itself_is_refused(config: Path) -> None:
    chain(config.parent)
    config.write_text("model: {teacher: {weights: {recipe: digits/assistant.yaml}}}\n")
    circle = r"teacher\.yaml -> assistant\.yaml -> teacher\.yaml"
    with pytest.raises(ValueError, match=f"a recipe must not need itself, got {circle}"):
        run_of_recipe(config)


def test_training_is_a_process_that_knows_nothing_of_this_job(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_JOB_ID", "PL_GLOBAL_SEED", "KD_LIGHTNING_RUN"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(trust, "ALLOWED", {*trust.BUILT_IN, "mine"})
    stand_in(Path.cwd(), monkeypatch, 0)
    folder = train(config)
    told = json.loads(Path("told.json").read_text())
    line = ["fit", "--config", str(config), "--experiment", "recipes", "--run", folder.path.name, "--allow", "mine"]
    assert told == {"arguments": line, "environment": ["HOME"]}


def test_a_stopped_training_is_resumed(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(Path.cwd(), monkeypatch, 0)
    folder = run_of_recipe(config)
    folder.path.mkdir(parents=True)
    folder.config.write_text("{}")
    train(config)
    assert json.loads(Path("told.json").read_text())["arguments"][-2:] == ["resume", str(folder.path)]


def test_a_finished_one_is_taken_as_it_is(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(Path.cwd(), monkeypatch, 1)
    folder = run_of_recipe(config)
    folder.path.mkdir(parents=True)
    folder.record.write_text("{}")
    assert train(config) == folder
    assert not Path("told.json").exists()


def test_a_failure_is_passed_on(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(Path.cwd(), monkeypatch, 3)
    with pytest.raises(ValueError, match=r"weights\.recipe: training .*teacher\.yaml ended with exit code 3"):
        train(config)


def stated(weights: Any, **trainer: Any) -> Namespace:
    network = {"name": "cifar_resnet8", "weights": weights}
    teacher = Namespace(class_path="FrozenTeacher", init_args=Namespace(network=network, check=True))
    model = Namespace(class_path="OfflineDistiller", init_args=Namespace(teacher=teacher))
    return Namespace(model=model, trainer=Namespace(**trainer))


def teacher_of(config: Namespace) -> Any:
    return config.model.init_args.teacher.init_args


def test_a_recipe_is_written_down_then_replaced_by_its_run(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "train", lambda path, steps: run_of_recipe(path, steps))
    of_run = stated({"recipe": "digits/teacher.yaml"})
    resolve_recipes(of_run, [config], replace=False)
    assert teacher_of(of_run).network["weights"] == {"recipe": str(config)}
    resolve_recipes(of_run, [config], replace=True)
    assert teacher_of(of_run).network["weights"] == str(run_of_recipe(config).path)
    assert teacher_of(of_run).check is True


def test_a_dry_run_trains_its_recipe_dryly(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "train", lambda path, steps: run_of_recipe(path, steps))
    of_run = stated({"recipe": "digits/teacher.yaml"}, fast_dev_run=2)
    resolve_recipes(of_run, [config], replace=True)
    assert teacher_of(of_run).network["weights"] == str(run_of_recipe(config, 2).path)
    assert teacher_of(of_run).check is False


def test_an_epoch_of_a_recipe(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "train", lambda path, steps: run_of_recipe(path, steps))
    of_run = stated({"recipe": "digits/teacher.yaml@epoch=40"})
    resolve_recipes(of_run, [config], replace=False)
    assert teacher_of(of_run).network["weights"] == {"recipe": f"{config}@epoch=40"}
    resolve_recipes(of_run, [config], replace=True)
    assert teacher_of(of_run).network["weights"] == f"{run_of_recipe(config).path}@epoch=40"
    dry = stated({"recipe": "digits/teacher.yaml@epoch=40"}, fast_dev_run=2)
    resolve_recipes(dry, [config], replace=True)
    assert teacher_of(dry).network["weights"] == str(run_of_recipe(config, 2).path)


def test_a_dry_run_goes_down_the_chain(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(Path.cwd(), monkeypatch, 0)
    assistant, _ = chain(config.parent)
    folder = train(assistant, 2)
    assert folder.path.name.endswith("-2-steps")
    assert "KD_LIGHTNING_HURRIED" in json.loads(Path("told.json").read_text())["environment"]
    monkeypatch.setattr(recipes, "train", lambda path, steps: run_of_recipe(path, steps))
    monkeypatch.setenv("KD_LIGHTNING_HURRIED", "2")
    link = stated({"recipe": "digits/teacher.yaml"})
    resolve_recipes(link, [config], replace=True)
    assert teacher_of(link).network["weights"] == str(run_of_recipe(config, 2).path)
    assert teacher_of(link).check is False


def test_a_dry_run_examines_no_member_of_an_ensemble(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "train", lambda path, steps: run_of_recipe(path, steps))
    one = stated({"recipe": "digits/teacher.yaml"}, fast_dev_run=2)
    frozen = one.model.init_args.teacher
    other = Namespace(class_path="FrozenTeacher", init_args=Namespace(network={"weights": "w.ckpt"}, check=True))
    one.model.init_args.teacher = Namespace(init_args=Namespace(teachers={"a": frozen, "b": other}, check=True))
    resolve_recipes(one, [config], replace=True)
    assert frozen.init_args.check is False
    assert other.init_args.check is False


def test_other_weights_are_left_alone(config: Path) -> None:
    of_run = stated("last.ckpt")
    resolve_recipes(of_run, [config], replace=True)
    assert teacher_of(of_run).network["weights"] == "last.ckpt"


def test_the_packages_own_are_found_from_anywhere(config: Path) -> None:
    packaged = Path(__file__).parents[2] / "configs/digits/supervised/wide_teacher.yaml"
    assert found_config("configs/digits/supervised/wide_teacher.yaml", [config]) == packaged
    with pytest.raises(
        FileNotFoundError, match=r"weights\.recipe: .* did you mean digits/supervised/wide_teacher\.yaml"
    ):
        found_config("configs/digits/supervised/wider_teacher.yaml", [config])
