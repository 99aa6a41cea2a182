"""A look at a finished run: its network in place, with its data and its teacher, and nothing written."""

from collections.abc import Sequence
from contextlib import nullcontext

import lightning.pytorch as pl

from kd_lightning.cli.door import Door
from kd_lightning.cli.quiet import quiet
from kd_lightning.distillers import Distiller
from kd_lightning.models import filled_later
from kd_lightning.run_folder import RunFolder

ALONE = (
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.devices=1",
    "--trainer.num_nodes=1",
    "--trainer.strategy=auto",
    "--verbose=false",
)

OF_A_TEST = ("--data.", "--model.", "--trainer.")  # what options of a test begin with


def check_options(command: str, options: Sequence[str]) -> None:
    """Let options pass that a command hands on to the test of a run.

    Raises:
        ValueError: for any other.
    """
    if unknown := [option for option in options if option.startswith("-") and not option.startswith(OF_A_TEST)]:
        raise ValueError(f"{command} has no option {unknown[0]}: see kd-lightning {command} --help")


def look(
    folder: RunFolder, looker: pl.Callback, ckpt: str = "last", options: Sequence[str] = (), *, taught: bool = True
) -> Door:
    """Test a run on one device while a callback looks on; its folder stays as it is.

    The callback meets the module as it is evaluated: weights of the checkpoint, an average in the student's place where
    one is evaluated, the teacher on its device. ``on_test_batch_end`` is given the `Answers` to each batch;
    ``on_test_epoch_end`` is the last hook before an average gives the student its place back.

    Args:
        folder: The run's.
        looker: The callback.
        ckpt: ``last`` or ``best``.
        options: For the command line, as ``--data.init_args.root=DATA``.
        taught: Whether the teacher is asked too. Without it, all that is trained comes from the checkpoint, and the
            files that weights were taken from, a teacher's among them, may be gone.

    Raises:
        ValueError: for another ``ckpt``, or a module of another package.
        FileNotFoundError: if the run does not have the checkpoint.
    """
    line = ["test", "--config", str(folder.config), "--ckpt_path", str(folder.checkpoint(ckpt)), *ALONE, *options]
    with quiet(), nullcontext() if taught else filled_later():
        door = Door(line, folder, looker)
        if not isinstance(door.model, Distiller):
            raise ValueError(f"{folder.path} is a run of {type(door.model).__name__}, which is no Distiller")
        door.model.compared = taught
        door.carry_out()
    return door
