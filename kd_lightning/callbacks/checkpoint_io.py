"""Checkpoint files that survive a crash while they are written, and are not believed when damaged."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from kd_lightning.run_folder import broken
from kd_lightning.whole_file import whole_file


class SafeCheckpointIO(CheckpointIO):
    """Writes beside the target, syncs, renames; reads only after the checksums hold, and without running code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Replace the file at once, or leave the old one as it is.

        Raises:
            OSError: naming the file, for instance where the disk is full.
        """
        path = Path(path)
        try:
            with whole_file(path) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            raise OSError(f"the checkpoint {path} cannot be written: {error}; the previous one is untouched") from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint, tensors on the CPU unless ``map_location`` says otherwise.

        Raises:
            ValueError: if the file is damaged or would run code; FileNotFoundError: if it is not there.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no checkpoint {path}")
        if fault := broken(path):
            raise ValueError(fault)
        try:
            checkpoint: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{path} cannot be loaded without running code from it: {error}") from error
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete the file if it is there."""
        Path(path).unlink(missing_ok=True)
