"""How loggers are named after the run."""

import re
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace
from lightning.pytorch import loggers

from kd_lightning.cli import tracking
from kd_lightning.cli.tracking import NO_DATABASE, identify
from kd_lightning.run_folder import RunFolder

FOLDER = RunFolder(Path("runs/kd/a-seed0"))
WANDB = "lightning.pytorch.loggers.WandbLogger"


def logger(class_path: str = WANDB, dict_kwargs: dict[str, Any] | None = None, **arguments: Any) -> Namespace:
    defaults = {"name": None, "save_dir": ".", "id": None}
    made = Namespace(class_path=class_path, init_args=Namespace(**(defaults | arguments)))
    if dict_kwargs is not None:
        made["dict_kwargs"] = dict_kwargs
    return made


@pytest.fixture(autouse=True)
def no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_RUN_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(NO_DATABASE, "true")


def identified(stated: Any, folder: RunFolder = FOLDER, subcommand: str = "fit") -> Any:
    config = Namespace(trainer=Namespace(logger=stated))
    identify(config, folder, subcommand)
    return config.trainer.logger


def test_what_is_left_open_comes_from_the_run() -> None:
    found = identified(logger())
    assert vars(found.init_args) == {"name": "a-seed0", "save_dir": "runs/kd/a-seed0", "id": "kd-a-seed0"}
    assert found.dict_kwargs == {"group": "kd", "resume": "allow", "job_type": "train"}


def test_what_is_stated_stays() -> None:
    found = identified(logger(name="mine", save_dir="there", id="1", dict_kwargs={"group": "g", "notes": "n"}))
    assert vars(found.init_args) == {"name": "mine", "save_dir": "there", "id": "1"}
    assert found.dict_kwargs == {"group": "g", "resume": "allow", "notes": "n", "job_type": "train"}


def test_each_of_several_loggers() -> None:
    other = logger("lightning.pytorch.loggers.CSVLogger")
    before = other.clone()
    found = identified([other, logger()])
    assert found[0] == before
    assert found[1].init_args.id == "kd-a-seed0"


@pytest.mark.parametrize("none", [None, True, False])
def test_no_logger(none: Any) -> None:
    assert identified(none) is none


def test_a_dry_run_has_no_logger() -> None:
    config = Namespace(trainer=Namespace(logger=logger(), fast_dev_run=2))
    identify(config, FOLDER, "fit")
    assert config.trainer.logger is False


def test_an_id_is_what_wandb_takes() -> None:
    folder = RunFolder(Path("runs/e") / f"a b:c#d\u00e9-{'x' * 150}")
    identity = identified(logger(), folder).init_args.id
    assert len(identity) <= 128
    assert re.fullmatch(r"e-a-b-c-d--x+-[0-9a-f]{8}", identity)


@pytest.mark.parametrize(("one", "other"), [("a/" + "r" * 100, "b/" + "r" * 100), ("a/r s", "a/r:s")])
def test_runs_with_other_names_are_other_runs(one: str, other: str) -> None:
    identities = {identified(logger(), RunFolder(Path("runs") / name)).init_args.id for name in (one, other)}
    assert len(identities) == 2


@pytest.mark.parametrize(
    ("subcommand", "stated", "job"),
    [("fit", None, "train"), ("test", None, "test"), ("predict", None, "predict"), ("test", "mine", "mine")],
)
def test_the_job_type_is_the_commands_unless_it_is_stated(subcommand: str, stated: str | None, job: str) -> None:
    found = identified(logger(dict_kwargs={"job_type": stated} if stated else None), subcommand=subcommand)
    assert found.dict_kwargs["job_type"] == job


def test_the_agent_of_a_sweep_says_the_id_which_the_files_remember(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "sweep-1")
    assert identified(logger()).init_args.id == "sweep-1"
    folder = RunFolder(tmp_path / "e/r")
    for name in ("run-20261129_101112-old", "offline-run-20261129_101113-sweep-1", "latest-run", "debug.log"):
        (folder.path / "wandb" / name).mkdir(parents=True)
    for agent in ("another", None):
        monkeypatch.setenv("WANDB_RUN_ID", agent) if agent else monkeypatch.delenv("WANDB_RUN_ID")
        assert identified(logger(), folder).init_args.id == "sweep-1"


@pytest.mark.parametrize(("kind", "package"), [("MLFlowLogger", "mlflow"), ("TensorBoardLogger", "tensorboard")])
def test_a_logger_without_its_package_says_what_to_install(
    kind: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    message = f"{kind} needs the package {package}: pip install 'kd-lightning[tracking]'"
    with pytest.raises(ValueError, match=re.escape(message)):
        identified(lightnings(kind))


def test_checkpoints_of_an_offline_run_are_refused_as_artifacts_of_lightnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(ValueError, match="log_model needs a W&B server"):
        identified(logger(log_model="all"))


def lightnings(kind: str, **stated: Any) -> Namespace:
    """A logger as the parser leaves it: with Lightning's defaults."""
    made = getattr(loggers, kind)
    defaults = {key: each.default for key, each in signature(made.__init__).parameters.items() if key != "self"}
    return Namespace(class_path=f"lightning.pytorch.loggers.{kind}", init_args=Namespace(**(defaults | stated)))


def test_tensorboards_files_are_in_the_runs_folder() -> None:
    found = identified(lightnings("TensorBoardLogger", save_dir=".")).init_args
    made = loggers.TensorBoardLogger(save_dir=found.save_dir, name=found.name, version=found.version)
    assert Path(made.log_dir) == FOLDER.path / "tensorboard"
    stated = identified(lightnings("TensorBoardLogger", save_dir="there", name="n", version=3)).init_args
    assert (stated.save_dir, stated.name, stated.version) == ("there", "n", 3)


def test_mlflow_is_told_the_names_and_goes_on_with_the_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "kd" / "a-seed0")
    found = identified(lightnings("MLFlowLogger", tracking_uri=None), folder).init_args
    assert (found.experiment_name, found.run_name, found.run_id) == ("kd", "a-seed0", None)
    assert found.save_dir == str(folder.path / "mlruns")
    assert not folder.path.exists()
    made = loggers.MLFlowLogger(found.experiment_name, found.run_name, None, save_dir=found.save_dir)
    identity = made.run_id
    assert identified(lightnings("MLFlowLogger", tracking_uri=None), folder, "test").init_args.run_id == identity
    other = lightnings("MLFlowLogger", tracking_uri=f"file:{found.save_dir}", run_name="b")
    assert identified(other, folder).init_args.run_id is None
    stated = lightnings("MLFlowLogger", tracking_uri=f"file:{found.save_dir}", run_name="a-seed0", experiment_name="x")
    assert identified(stated, folder).init_args.run_id is None
