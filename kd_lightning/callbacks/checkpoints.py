"""Which checkpoints a run keeps: the last one, and the best one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from kd_lightning.run_folder import RunFolder


@dataclass(frozen=True)
class Checkpoints:
    """When a run saves, and what it calls best.

    Args:
        every_epochs: ``last.ckpt`` is written after so many epochs, >= 1.
        every_steps: It is also written after so many optimizer steps; null for long epochs not at all.
        best: The figure that the best checkpoint is chosen by; null keeps none. The headline is the last one.
        mode: Whether the best figure is the largest or the smallest.
    """

    every_epochs: int = 1
    every_steps: int | None = None
    best: str | None = "val/top1"
    mode: Literal["max", "min"] = "max"

    def __post_init__(self) -> None:
        for name, value in {"every_epochs": self.every_epochs, "every_steps": self.every_steps}.items():
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
        kept.append(
            ModelCheckpoint(**common, filename="last", every_n_epochs=self.every_epochs, save_on_train_epoch_end=True)
        )
        if self.every_steps is not None:
            kept.append(ModelCheckpoint(**common, filename="last", every_n_train_steps=self.every_steps))
        return kept
