"""What Weights & Biases is told of a run beside its figures: images, calibration, checkpoints, the teacher's hash."""

import tempfile
from pathlib import Path
from typing import cast

import lightning.pytorch as pl
import torch
import wandb
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from kd_lightning.callbacks.metrics_file import MetricsFile
from kd_lightning.callbacks.wandb_tables import WHO, image_table, reliability_plot
from kd_lightning.distillers import Distiller
from kd_lightning.distillers.calibration import binned
from kd_lightning.distillers.data_facts import class_names, views_of
from kd_lightning.distillers.evaluating import Answers
from kd_lightning.distillers.metrics import ECE_BINS
from kd_lightning.distillers.notable_images import NotableImages
from kd_lightning.distillers.onlooker import Onlooker
from kd_lightning.models import FrozenTeacher, Teacher, save_weights
from kd_lightning.models.evaluated import evaluated_student
from kd_lightning.models.peer_weights import TOP1, peers_in
from kd_lightning.ranks import summed
from kd_lightning.run_folder import RunFolder


def hashes(teacher: Teacher | None) -> dict[str, dict[str, str]]:
    """What the answers of each frozen teacher depend on, by its name: the hash of its weights among it."""
    members = teacher.members() if teacher is not None else {}
    return {name: member.identity() for name, member in members.items() if isinstance(member, FrozenTeacher)}


def students_in(path: Path) -> dict[str, dict[str, Tensor]]:
    """The students of a checkpoint as they are evaluated, by the names of their files: one, or one for each peer."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if TOP1 in checkpoint:
        return {f"student-{name}": weights for name, weights in peers_in(checkpoint).items()}
    student = evaluated_student(checkpoint)
    return {"student": student} if student else {}


def last_value(trainer: pl.Trainer, figure: str) -> float | None:
    """The last value of a figure, which a resumed training may not have measured again; None if nobody knows it."""
    if figure in trainer.callback_metrics:
        return float(trainer.callback_metrics[figure])
    return next((logger.last(figure) for logger in trainer.loggers if isinstance(logger, MetricsFile)), None)


def loggers_of(trainer: pl.Trainer) -> list[WandbLogger]:
    """The W&B loggers of a trainer."""
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]


def log_checkpoints(logger: WandbLogger, folder: RunFolder) -> None:
    """Log the best and the last checkpoint as two versions of one artifact."""
    for alias, checkpoint in {"best": folder.best(), "last": folder.last}.items():
        if checkpoint is None or not checkpoint.is_file():
            continue
        artifact = wandb.Artifact(f"model-{logger.experiment.id}", "model")
        with tempfile.TemporaryDirectory() as made:
            artifact.add_file(str(checkpoint))
            for name, weights in students_in(checkpoint).items():
                save_weights(weights, file := Path(made) / f"{name}.safetensors")
                artifact.add_file(str(file))
        logger.experiment.log_artifact(artifact, aliases=[alias])


class WandbReport(Onlooker):
    """Tells the `WandbLogger` of a trainer what its figures do not; without one it does nothing.

    At the start of a training: the hash of the teacher's weights, in the configuration. At its end: ``<figure>.best``
    and ``<figure>.last`` in the summary, of the figure that the best checkpoint is chosen by; and the two checkpoints,
    each with the student that is evaluated as ``student.safetensors``, or each peer as ``student-<peer>.safetensors``,
    as versions of the artifact ``model-<id>`` with the aliases ``best`` and ``last``. After a test: ``test/images``, a
    table of images that the student misses and the teacher gets right, and of those that the teacher is least sure of;
    and ``test/reliability``. On several devices the images are of the first one's share.

    Args:
        artifacts: Whether checkpoints are logged; offline W&B keeps a copy of them for `wandb sync`.
    """

    def __init__(self, artifacts: bool = True) -> None:
        self.artifacts = artifacts
        self._images: NotableImages | None = None
        self._sums: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the teacher's hash into the configuration."""
        if isinstance(pl_module, Distiller) and trainer.is_global_zero:
            for logger in loggers_of(trainer):
                logger.log_hyperparams({"teachers": hashes(pl_module.present_teacher)})

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the best and the last figure, and the checkpoints."""
        if not trainer.is_global_zero:
            return
        for logger in loggers_of(trainer):
            for kept in trainer.checkpoint_callbacks:
                if isinstance(kept, ModelCheckpoint) and kept.monitor and kept.best_model_score is not None:
                    logger.experiment.summary[f"{kept.monitor}.best"] = float(kept.best_model_score)
                    if (last := last_value(trainer, kept.monitor)) is not None:
                        logger.experiment.summary[f"{kept.monitor}.last"] = last
            if self.artifacts:
                log_checkpoints(logger, RunFolder(Path(trainer.default_root_dir)))

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at no image yet."""
        self._images, self._sums = None, {}
        if isinstance(pl_module, Distiller) and loggers_of(trainer):
            views = views_of(trainer)
            self._images = NotableImages(views.mean, views.std)
            who = WHO if pl_module.present_teacher is not None else WHO[:1]
            self._sums = {name: torch.zeros(3, ECE_BINS, dtype=torch.float64, device=pl_module.device) for name in who}

    def note(self, answers: Answers) -> None:
        """Take in the answers of student and teacher."""
        if self._images is None:
            return
        self._images.note(answers)
        for who in self._sums:
            sure, decided = getattr(answers, who).float().softmax(dim=1).max(dim=1)
            self._sums[who] += binned(sure, decided == answers.batch.target)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the images and the calibration."""
        if self._images is None:
            return
        sums = {who: summed(each).cpu() for who, each in self._sums.items()}
        if not trainer.is_global_zero:
            return
        kinds = {"missed": self._images.missed, "least sure": self._images.unsure}
        classes = class_names(getattr(trainer, "datamodule", None), cast(int, cast(Distiller, pl_module).num_classes))
        for logger in loggers_of(trainer):
            shown = {"test/images": image_table(kinds, classes), "test/reliability": reliability_plot(sums)}
            logger.experiment.log(shown)
