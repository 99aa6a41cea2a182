"""A loss that is not finite stops the run before it reaches a weight, and leaves what is needed to replay it."""

from collections.abc import Mapping
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor

from kd_lightning.batch import Batch


class NonFiniteLossError(FloatingPointError):
    """The loss of a batch is NaN or infinite."""


def stop_if_not_finite(loss: Tensor, values: Mapping[str, Tensor], batch: Batch, module: pl.LightningModule) -> None:
    """Let a finite loss pass.

    Otherwise the batch, the state, and its place in the run are written to ``nonfinite-rank*.pt`` in the run's folder.
    Weights and checkpoints stay as they were before the step; only running statistics (BatchNorm) have seen the batch.

    Raises:
        NonFiniteLossError: naming the terms and the samples.
    """
    if bool(torch.isfinite(loss)):
        return
    path = Path(module.trainer.default_root_dir) / f"nonfinite-rank{module.global_rank}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"global_step": module.global_step, "epoch": module.current_epoch, "rank": module.global_rank}
    torch.save({"batch": batch._asdict(), "state_dict": module.state_dict(), **place}, path)
    shown = ", ".join(f"{name} {float(value):.4g}" for name, value in values.items())
    rows = "" if batch.index is None else f"; samples {batch.index[:8].tolist()} …"
    raise NonFiniteLossError(
        f"the loss is {loss.item()} at step {module.global_step}, epoch {module.current_epoch} ({shown}{rows}): "
        f"stopped before the weights changed; {path} holds the batch and the state. A lower learning rate, "
        "trainer.gradient_clip_val, or another precision may help"
    )
