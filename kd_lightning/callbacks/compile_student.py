"""torch.compile for the student."""

from typing import Literal

import lightning.pytorch as pl
from torch import nn

Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


class CompileStudent(pl.Callback):
    """Compiles the student in place before the first step: no weight gets another name, and taps are heard.

    It is meant for GPUs, where it has not been measured here; for a ResNet-20 on a CPU nothing was gained. A
    frozen teacher has an argument of its own.

    Args:
        mode: Of `torch.compile`; it belongs to the backend inductor.
        dynamic: Whether one program takes any batch size; None lets torch decide when a second one comes.
        backend: Of `torch.compile`.

    Raises:
        ValueError: if there is a mode for another backend, which knows none.
    """

    def __init__(self, mode: Mode = "default", dynamic: bool | None = None, backend: str = "inductor") -> None:
        if mode != "default" and backend != "inductor":
            raise ValueError(
                f"mode must be default with the backend {backend}, got {mode}: "
                "leave mode out, or take the backend inductor"
            )
        self.mode, self.dynamic, self.backend = mode, dynamic, backend

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compile.

        Raises:
            ValueError: if there is no student.
        """
        student = pl_module.student
        if not isinstance(student, nn.Module):
            raise ValueError(f"{type(pl_module).__name__} has no student to compile")
        # Other backends refuse any mode.
        mode = self.mode if self.backend == "inductor" else None
        student.compile(mode=mode, dynamic=self.dynamic, backend=self.backend)
