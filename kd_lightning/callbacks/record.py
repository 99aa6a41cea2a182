"""The record of a run: its configuration before step 0, its figures after the test."""

import time
from collections.abc import Iterator, Mapping
from typing import Any, cast

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.loggers import Logger, MLFlowLogger

from kd_lightning.callbacks.metrics_file import MetricsFile
from kd_lightning.distillers.evaluating import Answers
from kd_lightning.distillers.onlooker import Onlooker
from kd_lightning.models.weights import file_sha256
from kd_lightning.ranks import summed
from kd_lightning.run_folder import RunFolder, provenance
from kd_lightning.whole_file import write_json, write_text

OF_FIGURES = ("model", "data")  # parts of a configuration that the figures of a test depend on
ELSEWHERE = frozenset({"root", "recipe", "workers", "eval_batch_size"})  # of them, where and how, not what


def wants_configuration(logger: Logger) -> bool:
    """Whether a logger keeps a configuration and may be given one: MLflow refuses a second one of a resumed run."""
    if isinstance(logger, MLFlowLogger):
        return not logger.experiment.get_run(cast(str, logger.run_id)).data.params
    return not isinstance(logger, MetricsFile)


def differences(one: Any, other: Any, where: str) -> Iterator[str]:
    """Dotted keys, below ``where``, of what two parts of configurations state differently, but for `ELSEWHERE`."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted({*one, *other} - ELSEWHERE):
            yield from differences(one.get(key), other.get(key), f"{where}.{key}")
    elif one != other:
        yield where


class RunRecord(Onlooker):
    """Writes ``config.yaml``, ``run.json`` when a training has finished, ``results.json`` after a test.

    Args:
        folder: The run's.
        config: The complete configuration as YAML.
        seed: The run's.
    """

    def __init__(self, folder: RunFolder, config: str, seed: int) -> None:
        self.folder, self.config, self.seed = folder, config, seed
        self.started = time.time()
        self._tested = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the configuration, unless the run has one; a resumed run keeps its own."""
        if trainer.is_global_zero and not self.folder.config.exists():
            write_text(self.folder.config, self.config)
        for logger in trainer.loggers:
            if stage == "fit" and trainer.is_global_zero and wants_configuration(logger):
                logger.log_hyperparams({**yaml.safe_load(self.config), **provenance()})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget what was logged after the step that the run starts from."""
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.rewind(trainer.global_step)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say that the training has finished, and where it stands."""
        if trainer.is_global_zero:
            write_json(self.folder.record, {**self._facts(trainer), "global_step": trainer.global_step})

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count the images."""
        self._tested = 0

    def note(self, answers: Answers) -> None:
        """Count the images of a batch."""
        self._tested += len(answers.batch)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the figures of the test, and what they are of."""
        images = int(summed(torch.tensor(self._tested, device=pl_module.device)))
        if trainer.is_global_zero:
            figures = {
                name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test/")
            }
            write_json(self.folder.results, {**figures, **self._facts(trainer), **self._subject(trainer, images)})

    def _subject(self, trainer: pl.Trainer, images: int) -> dict[str, Any]:
        """The checkpoint of a test, how many images it looked at, and what was stated otherwise than by the run."""
        path = trainer.ckpt_path
        tested, run = (yaml.safe_load(text) or {} for text in (self.config, self.folder.config.read_text()))
        return {
            "checkpoint": str(path or ""),
            "checkpoint_sha256": file_sha256(path) if path else None,
            "images": images,
            "stated_otherwise": [
                key for part in OF_FIGURES for key in differences(tested.get(part), run.get(part), part)
            ],
        }

    def _facts(self, trainer: pl.Trainer) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "epochs": trainer.max_epochs,
            "devices": trainer.world_size,
            "seconds": round(time.time() - self.started, 1),
            **provenance(),
        }
