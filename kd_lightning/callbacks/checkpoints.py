"""Which checkpoints a run keeps: the last one, the best one, and those of some epochs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from kd_lightning.models.network import KEPT
from kd_lightning.run_folder import RunFolder


class EpochCheckpoint(ModelCheckpoint):
    """Named by the number of epochs that were trained, where Lightning's count of the running one is less by one."""

    def format_checkpoint_name(self, metrics: dict[str, Tensor], *args: Any, **kwargs: Any) -> str:
        """The path of the checkpoint."""
        return super().format_checkpoint_name({**metrics, "epoch": metrics["epoch"] + 1}, *args, **kwargs)


@dataclass(frozen=True)
class Checkpoints:
    """When a run saves, and what it calls best.

    Args:
        every_epochs: ``last.ckpt`` is written after so many epochs, >= 1.
        every_steps: It is also written after so many optimizer steps; null for long epochs not at all.
        best: The figure that the best checkpoint is chosen by; null keeps none. The headline is the last one.
        mode: Whether the best figure is the largest or the smallest.
        keep_every_epochs: ``epoch=N.ckpt`` is kept after each multiple N of so many epochs, for a teacher that is taken
            before its end (``weights: RUN@epoch=N``); null keeps none.
    """

    every_epochs: int = 1
    every_steps: int | None = None
    best: str | None = "val/top1"
    mode: Literal["max", "min"] = "max"
    keep_every_epochs: int | None = None

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("every_epochs", "every_steps", "keep_every_epochs")}
        for name, value in given.items():
            if value is not None and value < 1:
                raise ValueError(f"checkpoints.{name} must be >= 1, got {value}")

    def callbacks(self, folder: RunFolder, validates: bool) -> Sequence[Callback]:
        """Lightning's callbacks for it; without validation there is no best one."""
        common: dict[str, Any] = {
            "dirpath": folder.checkpoints,
            "auto_insert_metric_name": False,
            "enable_version_counter": False,
        }
        kept: list[Callback] = []
        if self.best is not None and (validates or not self.best.startswith("val/")):
            kept.append(
                ModelCheckpoint(
                    **common, filename="best", monitor=self.best, mode=self.mode, save_on_train_epoch_end=True
                )
            )
        if self.keep_every_epochs is not None:  # before the last one: resumed from that, a run has kept all before it
            kept.append(
                EpochCheckpoint(
                    **common,
                    filename=KEPT + "{epoch}",
                    every_n_epochs=self.keep_every_epochs,
                    save_top_k=-1,
                    save_on_train_epoch_end=True,
                )
            )
        kept.append(
            ModelCheckpoint(**common, filename="last", every_n_epochs=self.every_epochs, save_on_train_epoch_end=True)
        )
        if self.every_steps is not None:
            kept.append(ModelCheckpoint(**common, filename="last", every_n_train_steps=self.every_steps))
        return kept
