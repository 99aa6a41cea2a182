"""A loss that is not finite stops the run before it reaches a weight, and leaves what is needed to replay it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor

from kd_lightning.batch import Batch


class NonFiniteLossError(FloatingPointError):
    """The loss of a batch is NaN or infinite."""


class Noted(NamedTuple):
    """A loss, its terms and its batch; whether it is finite, on its way to the host; when it will be there."""

    loss: Tensor
    values: Mapping[str, Tensor]
    batch: Batch
    finite: Tensor
    there: torch.cuda.Event | None


class FiniteWatch:
    """Looks at every loss before the optimizer's step, without a GPU that waits for the host.

    On a CPU it looks at once. On a GPU it looks when the backward pass has been started: the answer was sent when the
    forward pass ended, and while the host waits for it the device goes on.
    """

    def __init__(self) -> None:
        self._noted: list[Noted] = []

    def note(self, loss: Tensor, values: Mapping[str, Tensor], batch: Batch, module: pl.LightningModule) -> None:
        """Take in the loss of a batch.

        Raises:
            NonFiniteLossError: if it is not finite, on a CPU.
        """
        if not loss.is_cuda:
            stop_if_not_finite(loss, values, batch, module)
            return
        finite = torch.empty((), dtype=torch.bool, pin_memory=True)
        finite.copy_(torch.isfinite(loss.detach()), non_blocking=True)
        there = torch.cuda.Event()  # type: ignore[no-untyped-call]
        there.record()
        self._noted.append(Noted(loss.detach(), values, batch, finite, there))

    def settle(self, module: pl.LightningModule) -> None:
        """Let the training go on.

        Raises:
            NonFiniteLossError: if a loss that was noted is not finite.
        """
        noted, self._noted = self._noted, []
        for loss, values, batch, finite, there in noted:
            if there is not None:
                there.synchronize()
            if not bool(finite):
                stop_if_not_finite(loss, values, batch, module)


def stop_if_not_finite(loss: Tensor, values: Mapping[str, Tensor], batch: Batch, module: pl.LightningModule) -> None:
    """Let a finite loss pass.

    Otherwise the batch, the state, and its place in the run are written to ``nonfinite-rank*.pt`` in the run's folder.
    Weights and checkpoints stay as they were before the step; only running statistics (BatchNorm) have seen the batch.

    Raises:
        NonFiniteLossError: naming the terms and the samples.
    """
    if math.isfinite(loss.item()):
        return
    path = Path(module.trainer.default_root_dir) / f"nonfinite-rank{module.global_rank}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"global_step": module.global_step, "epoch": module.current_epoch, "rank": module.global_rank}
    kept = {name: value.clone() if isinstance(value, Tensor) else value for name, value in batch._asdict().items()}
    torch.save({"batch": kept, "state_dict": module.state_dict(), **place}, path)  # index is cut out of the epoch's
    shown = ", ".join(f"{name} {float(value):.4g}" for name, value in values.items())
    rows = "" if batch.index is None else f"; samples {batch.index[:8].tolist()} …"
    raise NonFiniteLossError(
        f"the loss is {loss.item()} at step {module.global_step}, epoch {module.current_epoch} ({shown}{rows}): "
        f"stopped before the weights changed; {path} holds the batch and the state. A lower learning rate, "
        "trainer.gradient_clip_val, or another precision may help"
    )
