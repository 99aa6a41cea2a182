"""How a W&B logger is named after the run."""

import re
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace

from kd_lightning.cli.tracking import identify_wandb
from kd_lightning.run_folder import RunFolder

FOLDER = RunFolder(Path("runs/kd/a-seed0"))
WANDB = "lightning.pytorch.loggers.WandbLogger"


def logger(class_path: str = WANDB, dict_kwargs: dict[str, Any] | None = None, **arguments: Any) -> Namespace:
    defaults = {"name": None, "save_dir": ".", "id": None}
    made = Namespace(class_path=class_path, init_args=Namespace(**(defaults | arguments)))
    if dict_kwargs is not None:
        made["dict_kwargs"] = dict_kwargs
    return made


def identified(loggers: Any, folder: RunFolder = FOLDER) -> Any:
    config = Namespace(trainer=Namespace(logger=loggers))
    identify_wandb(config, folder)
    return config.trainer.logger


def test_what_is_left_open_comes_from_the_run() -> None:
    found = identified(logger())
    assert vars(found.init_args) == {"name": "a-seed0", "save_dir": "runs/kd/a-seed0", "id": "kd-a-seed0"}
    assert found.dict_kwargs == {"group": "kd", "resume": "allow"}


def test_what_is_stated_stays() -> None:
    found = identified(logger(name="mine", save_dir="there", id="1", dict_kwargs={"group": "g", "notes": "n"}))
    assert vars(found.init_args) == {"name": "mine", "save_dir": "there", "id": "1"}
    assert found.dict_kwargs == {"group": "g", "resume": "allow", "notes": "n"}


def test_each_of_several_loggers() -> None:
    other = logger("lightning.pytorch.loggers.TensorBoardLogger")
    before = other.clone()
    found = identified([other, logger()])
    assert found[0] == before
    assert found[1].init_args.id == "kd-a-seed0"


@pytest.mark.parametrize("none", [None, True, False])
def test_no_logger(none: Any) -> None:
    assert identified(none) is none


def test_an_id_is_what_wandb_takes() -> None:
    folder = RunFolder(Path("runs/e") / f"a b:c#d\u00e9-{'x' * 150}")
    identity = identified(logger(), folder).init_args.id
    assert len(identity) <= 128
    assert re.fullmatch(r"e-a-b-c-d--x+-[0-9a-f]{8}", identity)


@pytest.mark.parametrize(("one", "other"), [("a/" + "r" * 100, "b/" + "r" * 100), ("a/r s", "a/r:s")])
def test_runs_with_other_names_are_other_runs(one: str, other: str) -> None:
    identities = {identified(logger(), RunFolder(Path("runs") / name)).init_args.id for name in (one, other)}
    assert len(identities) == 2
