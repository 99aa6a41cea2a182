"""LightningCLI with a folder for each run, in which nothing that was stated is overridden by a checkpoint."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger

import kd_lightning.datamodules as datamodules
from kd_lightning.callbacks import (
    Checkpoints,
    MetricsFile,
    Predictions,
    Preemption,
    Progress,
    RunCard,
    RunRecord,
    SafeCheckpointIO,
)
from kd_lightning.cli.parser import Parser
from kd_lightning.cli.precision import choose_precision
from kd_lightning.cli.recipes import resolve_recipes
from kd_lightning.cli.run_naming import RUNS, claim, name_run
from kd_lightning.cli.strategy import chosen
from kd_lightning.cli.tracking import identify
from kd_lightning.run_folder import RunFolder

OF_THE_CALL = ("config", "ckpt_path", "weights_only", "verbose", "return_predictions")  # not of the run


def listed(value: Any) -> list[Any]:
    """None or a boolean as nothing, one thing as a list of it, a list as it is."""
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


class Door(LightningCLI):
    """Reads a command line and builds what it states; `carry_out` does it.

    Args:
        args: The command line, without the program's name.
        folder: The run's folder, where there is one: a run that is resumed or tested.
        looker: Looks at a test, which then leaves nothing in the run's folder.
    """

    def __init__(self, args: ArgsType, folder: RunFolder | None = None, looker: pl.Callback | None = None) -> None:
        self.folder, self.looker = folder, looker
        self._named = str(args[0]) if isinstance(args, list) and args else ""
        super().__init__(
            pl.LightningModule,
            pl.LightningDataModule,
            save_config_callback=None,
            seed_everything_default=0,
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=args,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one that the command line begins with, as it takes time to make each one's parser; else all."""
        known = LightningCLI.subcommands()
        return {self._named: known[self._named]} if self._named in known else known

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what names a run, and what it keeps."""
        parser.add_argument("--experiment", type=str | None, default=None, help="Folder of runs; the config's name.")
        parser.add_argument(
            "--run", type=str | None, default=None, help="Folder of the run; a time stamp and the seed."
        )
        parser.add_argument("--checkpoints", type=Checkpoints, default=Checkpoints())

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse what was given, whatever the process's own command line is."""
        Parser.subparsers = list(self._subcommand_parsers.values())
        self.config = parser.parse_args(cast(Sequence[str], args))

    def _parse_ckpt_path(self) -> None:
        """Nothing: a checkpoint does not override what was stated."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing yet: see `carry_out`."""

    def carry_out(self) -> None:
        """Run the subcommand."""
        super()._run_subcommand(str(self.subcommand))

    def before_instantiate_classes(self) -> None:
        """Name the run, write down the configuration, and see that the teachers that it names are trained."""
        stated = cast(Namespace, self.config[str(self.subcommand)])
        files = [Path(str(path)) for path in stated.get("config") or []]
        if self.folder is None:
            stated.experiment, stated.run = name_run(stated.experiment, stated.run, files, self._seed())
            self.folder = RunFolder(RUNS / stated.experiment / stated.run)
            if not stated.trainer.get("fast_dev_run"):
                claim(self.folder)
        if self.subcommand == "fit":
            choose_precision(stated.trainer)
        resolve_recipes(stated, files, replace=False)
        kept = stated.clone()
        for key in OF_THE_CALL:
            kept.pop(key, None)
        self.text: str = self._parser(self.subcommand).dump(kept, skip_unset=False, skip_validation=True)
        identify(stated, self.folder, str(self.subcommand))  # not written down: a run made of this one is another
        resolve_recipes(stated, files, replace=True)

    def _seed(self) -> int:
        return int(os.environ.get("PL_GLOBAL_SEED", 0))

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Lightning's trainer with the run's folder, record, checkpoints and metrics file."""
        folder = cast(RunFolder, self.folder)
        config = self._get(self.config_init, "trainer", default={})
        fitting, dry = self.subcommand == "fit", bool(config.get("fast_dev_run"))
        loggers = [logger for logger in listed(config.get("logger")) if isinstance(logger, Logger)]
        kwargs["logger"] = [MetricsFile(folder.metrics), *loggers] if fitting and not dry else loggers or False
        kwargs["default_root_dir"] = str(folder.path)
        kwargs["strategy"] = chosen(config, self.model)
        kwargs["plugins"] = [*listed(config.get("plugins")), SafeCheckpointIO()]
        if SLURMEnvironment.detect():
            kwargs["plugins"].append(SLURMEnvironment(auto_requeue=False))
        callbacks: list[pl.Callback] = []
        if self.looker is not None:
            callbacks.append(self.looker)
        else:
            callbacks += self._shown(config, None if dry else folder)
            kwargs["enable_model_summary"] = bool(config.get("enable_model_summary"))  # the card says what it would
        if self.looker is None and not dry:
            # Before those of the user: whatever fails in them, what has finished is known to have finished.
            record = RunRecord(folder, self.text, self._seed())
            kwargs["callbacks"] = [record, *listed(config.get("callbacks"))]
            if self.subcommand == "predict":
                callbacks.append(Predictions(folder))
            if fitting:
                checkpoints = cast(Checkpoints, self._get(self.config_init, "checkpoints"))
                callbacks += [Preemption(folder), *checkpoints.callbacks(folder, self._validates())]
        if not fitting:
            kwargs["enable_checkpointing"] = False
        self.trainer_defaults["callbacks"] = callbacks
        return super().instantiate_trainer(**kwargs)

    def _shown(self, config: Namespace, folder: RunFolder | None) -> list[pl.Callback]:
        """What a person sees: the card, which has the figures of a test in Lightning's place, and the progress."""
        stated = any(isinstance(callback, ProgressBar) for callback in listed(config.get("callbacks")))
        progress = [Progress()] if config.get("enable_progress_bar") is not False and not stated else []
        testing = self.subcommand == "test" and self.config_init.test.verbose
        if testing:
            self.config_init.test.verbose = False
        return [*progress, RunCard(folder, self.text, figures=testing)]

    def _validates(self) -> bool:
        if isinstance(self.datamodule, datamodules.ImageDataModule):
            return self.datamodule.val_fraction > 0 or self.datamodule.validate_on_test
        return True
