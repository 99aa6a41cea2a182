"""How a run is named, so that each has a folder of its own, and all processes of a run agree on it."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from kd_lightning.run_folder import RunFolder

INHERITED = "KD_LIGHTNING_RUN"  # the launching process tells the processes that it starts
RUNS = Path("runs")


def _job() -> str | None:
    """The name that a launcher gave all processes of this job, None if this process was not launched by one."""
    if slurm := os.environ.get("SLURM_JOB_ID"):
        return f"slurm-{slurm}"
    elastic = os.environ.get("TORCHELASTIC_RUN_ID")
    if elastic is None:
        return None
    if elastic == "none":
        raise ValueError("--run NAME is needed under torchrun without --rdzv-id: the processes could not agree on one")
    return f"torchrun-{elastic}"


def check_folder_name(option: str, name: str) -> None:
    """Let a name pass that one folder can have.

    Raises:
        ValueError: for another one.
    """
    if not name or name in {".", ".."} or set(name) & set("/\\"):
        raise ValueError(f"{option} must be the name of one folder, got {name!r}")


def name_run(experiment: str | None, run: str | None, configs: Sequence[Path], seed: int) -> tuple[str, str]:
    """Experiment and run: as stated, else the first config's name, and a time stamp (or the job) with the seed.

    Raises:
        ValueError: if a name is not one folder, or the processes could not agree on one.
    """
    experiment = experiment or (configs[0].stem if configs else "unnamed")
    if run is None:
        stamp = _job() or os.environ.get(INHERITED) or time.strftime("%Y-%m-%d-%H%M%S")
        os.environ[INHERITED] = stamp
        run = f"{stamp}-seed{seed}"
    check_folder_name("--experiment", experiment)
    check_folder_name("--run", run)
    return experiment, run


@rank_zero_only
def claim(folder: RunFolder) -> None:
    """Make the folder this run's own.

    Raises:
        ValueError: if another run has it.
    """
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.path.mkdir()
    except FileExistsError:
        raise ValueError(
            f"{folder.path} is another run's folder: give another --run NAME, or go on with it: "
            f"kd-lightning resume {folder.path}"
        ) from None
