"""A run in a process of its own: begun, or gone on with."""

import sys
from collections.abc import Sequence

from kd_lightning import trust
from kd_lightning.run_folder import RunFolder


def to_its_end(folder: RunFolder, options: Sequence[str]) -> list[str] | None:
    """The command that trains a run, or goes on with it; None if it has finished.

    Args:
        folder: The run's; what was claimed but never begun is begun anew.
        options: Of ``fit``, but for the names of experiment and run.
    """
    if folder.record.exists():
        return None
    if folder.config.exists():
        return ["resume", str(folder.path)]
    if folder.path.exists():
        folder.path.rmdir()
    return ["fit", *options, "--experiment", folder.path.parent.name, "--run", folder.path.name]


def in_a_process(command: Sequence[str]) -> list[str]:
    """A command as a process of this Python, in which the same modules may be imported as here."""
    allowed = [word for module in sorted(trust.ALLOWED - trust.BUILT_IN) for word in ("--allow", module)]
    return [sys.executable, "-m", "kd_lightning", *command, *allowed]
