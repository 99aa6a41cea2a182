"""Tracking: a W&B run is named after the run folder, so that resuming continues it."""

import hashlib
import os
import re
from typing import Any

from jsonargparse import Namespace

from kd_lightning.run_folder import RunFolder

LEFT_OPEN = {"None", "."}  # WandbLogger's defaults
LONGEST_ID = 100


def run_id(folder: RunFolder) -> str:
    """Experiment and run as W&B takes them; what had to be changed or cut is told apart by a hash."""
    stated = f"{folder.path.parent.name}-{folder.path.name}"
    taken = re.sub(r"[^a-zA-Z0-9_-]", "-", stated)
    if taken == stated and len(taken) <= LONGEST_ID:
        return taken
    digest = hashlib.sha256(stated.encode()).hexdigest()[:8]
    return f"{taken[: LONGEST_ID - len(digest) - 1]}-{digest}"


def identify_wandb(config: Namespace, folder: RunFolder) -> None:
    """Fill in what a W&B logger leaves open: id and name from the run, group from the experiment, files in the folder.

    The id is made of experiment and run, so ``resume`` and ``test`` go on with the same W&B run.

    Raises:
        ValueError: if checkpoints are to be artifacts of an offline run, which W&B would leave out without a word.
    """
    loggers: Any = config.trainer.get("logger")
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if not isinstance(logger, Namespace) or not str(logger.get("class_path")).endswith("WandbLogger"):
            continue
        if os.environ.get("WANDB_MODE") == "offline" and logger.init_args.get("log_model"):
            raise ValueError("log_model needs a W&B server, but WANDB_MODE is offline: set log_model to false")
        run, experiment = folder.path.name, folder.path.parent.name
        known = {"name": run, "id": run_id(folder), "save_dir": str(folder.path)}
        for key, value in known.items():
            if str(logger.init_args.get(key)) in LEFT_OPEN:
                logger.init_args[key] = value
        passed_on = {"group": experiment, "resume": "allow"}  # to wandb.init
        logger["dict_kwargs"] = {**passed_on, **(logger.get("dict_kwargs") or {})}
