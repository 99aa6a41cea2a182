"""Tracking: what W&B, TensorBoard and MLflow call a run is its folder's name, so that resuming continues it."""

import hashlib
import os
import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from jsonargparse import Namespace

from kd_lightning.run_folder import RunFolder

LEFT_OPEN = {"None", ".", "lightning_logs", "./mlruns"}  # what Lightning's loggers take where nothing is stated
LONGEST_ID = 100
JOBS = {"fit": "train", "validate": "validate", "test": "test", "predict": "predict"}
NO_DATABASE = "MLFLOW_ALLOW_FILE_STORE"
NEEDS = {"TensorBoardLogger": ("tensorboard", "tensorboardX"), "MLFlowLogger": ("mlflow",)}  # one of these packages
BEGUN = re.compile(r"(?:offline-)?run-(\d{8}_\d{6})-(.+)")  # W&B's name of a folder: when, and the id


def run_id(folder: RunFolder) -> str:
    """Experiment and run as W&B takes them; what had to be changed or cut is told apart by a hash."""
    stated = f"{folder.path.parent.name}-{folder.path.name}"
    taken = re.sub(r"[^a-zA-Z0-9_-]", "-", stated)
    if taken == stated and len(taken) <= LONGEST_ID:
        return taken
    digest = hashlib.sha256(stated.encode()).hexdigest()[:8]
    return f"{taken[: LONGEST_ID - len(digest) - 1]}-{digest}"


def begun_run(folder: RunFolder) -> str | None:
    """The id of the W&B run that the newest files in a run's folder are of; None if there are none."""
    begun = [found.groups() for path in folder.path.glob("wandb/*") if (found := BEGUN.fullmatch(path.name))]
    return max(begun)[1] if begun else None


def fill_in(logger: Namespace, **known: Any) -> None:
    """Give a logger the arguments that it leaves open."""
    for key, value in known.items():
        if str(logger.init_args.get(key)) in LEFT_OPEN:
            logger.init_args[key] = value


def identify_wandb(logger: Namespace, folder: RunFolder, subcommand: str) -> None:
    """Id and name from the run, group from the experiment, job type from the subcommand, files in the folder.

    The id is made of experiment and run, so ``resume`` and ``test`` go on with the same W&B run, whose job type is then
    that of the last command. An agent of a W&B sweep gives an id of its own, which W&B's files in the folder remember.

    Raises:
        ValueError: if checkpoints are to be artifacts of an offline run, which W&B would leave out without a word.
    """
    if os.environ.get("WANDB_MODE") == "offline" and logger.init_args.get("log_model"):
        raise ValueError("log_model needs a W&B server, but WANDB_MODE is offline: set log_model to false")
    identity = begun_run(folder) or os.environ.get("WANDB_RUN_ID") or run_id(folder)
    fill_in(logger, name=folder.path.name, id=identity, save_dir=str(folder.path))
    passed_on = {"group": folder.path.parent.name, "resume": "allow", "job_type": JOBS[subcommand]}  # to wandb.init
    logger["dict_kwargs"] = {**passed_on, **(logger.get("dict_kwargs") or {})}


def identify_tensorboard(logger: Namespace, folder: RunFolder, subcommand: str) -> None:
    """Event files in the run's folder under ``tensorboard/``, of all commands."""
    fill_in(logger, save_dir=str(folder.path), name="tensorboard", version="")


def identify_mlflow(logger: Namespace, folder: RunFolder, subcommand: str) -> None:
    """MLflow's experiment and run named as they are here; files in the run's folder, unless there is a server.

    ``resume`` and ``test`` go on with the run of that name.
    """
    store = folder.path / "mlruns"
    fill_in(logger, experiment_name=folder.path.parent.name, run_name=folder.path.name, save_dir=str(store))
    given = logger.init_args
    if given.get("tracking_uri") is None:
        os.environ.setdefault(NO_DATABASE, "true")  # MLflow 3 asks for consent, or for SQLAlchemy
        if not store.is_dir() and given.save_dir == str(store):
            return
    uri = given.get("tracking_uri") or f"file:{given.save_dir}"
    fill_in(logger, run_id=mlflow_run(uri, given.experiment_name, given.run_name))


def mlflow_run(uri: str, experiment: str, name: str) -> str | None:
    """The id of the newest run of that name in a store of MLflow's; None if there is none."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    named = client.search_runs([found.experiment_id], f'attributes.run_name = "{name}"', max_results=1)
    return str(named[0].info.run_id) if named else None


IDENTIFY: dict[str, Callable[[Namespace, RunFolder, str], None]] = {
    "WandbLogger": identify_wandb,
    "TensorBoardLogger": identify_tensorboard,
    "MLFlowLogger": identify_mlflow,
}


def check_installed(kind: str) -> None:
    """Let a logger pass whose package is installed.

    Raises:
        ValueError: for another one, with what to install.
    """
    packages = NEEDS.get(kind, ())
    if packages and not any(map(find_spec, packages)):
        raise ValueError(f"{kind} needs the package {packages[0]}: pip install 'kd-lightning[tracking]'")


def refusals() -> tuple[type[Exception], ...]:
    """What W&B raises where it will not have a run, for instance of somebody who is not logged in."""
    wandb = sys.modules.get("wandb")
    return () if wandb is None else (wandb.errors.Error,)


def identify(config: Namespace, folder: RunFolder, subcommand: str) -> None:
    """Fill in what the loggers of a configuration leave open, so that they call the run what its folder is called.

    In a ``fast_dev_run`` there are none.

    Raises:
        ValueError: if a logger would not do what it is asked to.
    """
    if config.trainer.get("fast_dev_run"):
        config.trainer.logger = False  # nothing is logged, but MLflow's logger makes a store when it is built
    loggers: Any = config.trainer.get("logger")
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        kind = str(logger.class_path).rpartition(".")[2] if isinstance(logger, Namespace) else ""
        if kind in IDENTIFY:
            check_installed(kind)
            IDENTIFY[kind](logger, folder, subcommand)
