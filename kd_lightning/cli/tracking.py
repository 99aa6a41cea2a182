"""Tracking: a W&B run is named after the run folder, so that resuming continues it."""

import re
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from kd_lightning.run_folder import RunFolder


def identify_wandb(config: Namespace, folder: RunFolder) -> None:
    """Fill in what a W&B logger leaves open: id and name from the run, group from the experiment, files in the folder.

    The id is a function of the run's absolute path, so ``resume`` and ``test`` go on with the same W&B run.
    """
    loggers: Any = config.trainer.get("logger")
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if not isinstance(logger, Namespace) or not str(logger.get("class_path")).endswith("WandbLogger"):
            continue
        arguments = logger.init_args
        run, experiment = folder.path.name, folder.path.parent.name
        identity = re.sub(r"[^\w-]", "-", f"{experiment}-{run}")[-100:]
        known = {"name": run, "group": experiment, "id": identity, "save_dir": str(folder.path), "resume": "allow"}
        open_arguments = {k: v for k, v in known.items() if arguments.get(k) in (None, ".", Path("."), "")}
        for key, value in open_arguments.items():
            if key in {"group", "resume"}:
                arguments.setdefault("dict_kwargs", {})
            arguments[key] = value
