"""What a person sees while a run goes on: the epoch and the whole training, how fast, how long still, the terms."""

import logging
import sys
import time
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from rich.progress import ProgressColumn, Task, TaskID
from rich.text import Text

from kd_lightning.callbacks.pace import Speed, batches_in, images_in, time_left
from kd_lightning.distillers.meter import due

BETWEEN = 0.1  # seconds, at least, from one update to the next
BAR = 20  # characters
THEME = RichProgressBarTheme(metrics_format=".4g")
LOGGERS = ("lightning.pytorch", "lightning.fabric")


def figures(metrics: dict[str, Any], shown: dict[str, Any]) -> dict[str, float]:
    """The terms of the loss, what the module wants shown, and the last ``val/top1``.

    Args:
        metrics: The trainer's ``callback_metrics``.
        shown: The trainer's ``progress_bar_metrics``.
    """
    terms = {name.removeprefix("train/"): value for name, value in metrics.items() if name.startswith("train/")}
    found = {**terms, **shown} | ({"val/top1": metrics["val/top1"]} if "val/top1" in metrics else {})
    return {name: float(value) for name, value in found.items()}


class Said(ProgressColumn):
    """What a bar has to say beside its length."""

    def render(self, task: Task) -> Text:
        """A text of the task's own."""
        return Text(task.fields.get("said", ""))


class Progress(RichProgressBar):
    """Lightning's rich progress bar, with the whole training under the epoch, and the terms of the loss.

    The time left is that of the whole training, its validations included; images per second are over all devices, in
    training alone. The terms are the means that the module logs every ``log_every_n_steps``: nothing is asked of the
    device in between. Messages appear above the bars.

    In a file or a pipe there are no bars, but a line for each epoch without validation, as a validation has its own.

    Args:
        refresh_rate: Pictures in a second, in 1 … 10.
        leave: Leave the bars of each epoch on the screen.
        theme: Lightning's: colours, and the format of the figures.
        console_kwargs: Of ``rich.console.Console``.

    Raises:
        ValueError: if ``refresh_rate`` is out of range.
    """

    def __init__(
        self,
        refresh_rate: int = 5,
        leave: bool = False,
        theme: RichProgressBarTheme = THEME,
        console_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if not 1 <= refresh_rate <= 10:
            raise ValueError(f"refresh_rate must be in 1 … 10, got {refresh_rate}")
        super().__init__(refresh_rate, leave, theme, console_kwargs)
        self._redirected: list[tuple[logging.StreamHandler[Any], Any]] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let there be bars on the first rank, and on a terminal."""
        super().setup(trainer, pl_module, stage)
        console = Console(**self._console_kwargs)
        if not (console.is_interactive or console.is_jupyter):
            self.disable()

    def configure_columns(self, trainer: pl.Trainer) -> list[ProgressColumn]:
        """What each bar shows; Lightning appends the figures."""
        description, bar, batches, *_ = super().configure_columns(trainer)
        bar.bar_width = BAR
        return [description, bar, batches, Said()]

    def _reset_progress_bar_ids(self) -> None:
        super()._reset_progress_bar_ids()
        self._whole: TaskID | None = None

    def _init_progress(self, trainer: pl.Trainer) -> None:
        super()._init_progress(trainer)
        # The handlers hold the stderr that was there before rich put one in its place which writes above the bars.
        real = sys.__stderr__
        if self.is_disabled or self._redirected or real is None or not real.isatty():
            return
        for handler in (each for name in LOGGERS for each in logging.getLogger(name).handlers):
            if isinstance(handler, logging.StreamHandler) and handler.stream is real:
                self._redirected.append((handler, handler.setStream(sys.stderr)))

    def _stop_progress(self) -> None:
        super()._stop_progress()
        for handler, stream in self._redirected:
            handler.setStream(stream)
        self._redirected = []

    # Training

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to measure with the end of the first step, which may have had something to compile."""
        super().on_train_start(trainer, pl_module)
        self._speed, self._began, self._last, self._drawn = Speed(), 0.0, 0.0, 0.0
        self._first = self._done = self._epoch = 0
        self._due, self._validated = True, False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the bar of the epoch."""
        self._line(trainer)
        super().on_train_epoch_start(trainer, pl_module)
        self._last, self._validated = time.monotonic(), False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images; show what has changed, if the last time was a while ago."""
        if not trainer.is_global_zero:
            return
        now = time.monotonic()
        self._done, self._epoch = trainer.fit_loop.epoch_loop.total_batch_idx + 1, trainer.current_epoch
        if not self._began:
            self._began, self._first = now, self._done
        else:
            self._speed.add(images_in(batch) * trainer.world_size, now - self._last)
        self._last = now
        # The module logs after the callbacks: what is due in this step is there in the next one.
        self._due |= due(batch_idx, cast(Any, trainer).log_every_n_steps)
        if self.is_enabled and (now - self._drawn >= BETWEEN or trainer.is_last_batch):
            self._draw(trainer, pl_module, batch_idx + 1)

    def _draw(self, trainer: pl.Trainer, module: pl.LightningModule, batches: int) -> None:
        if self.progress is None:
            return
        if self.train_progress_bar_id is None:  # an epoch that is resumed has no start
            self._initialize_train_progress_bar_id()
        if self._whole is None:
            self._whole = self._add_task(self._batches(trainer), "Training")
        self.progress.update(cast(TaskID, self.train_progress_bar_id), completed=batches, said=str(self._speed))
        self.progress.update(self._whole, completed=self._done, said=f"{self._left(trainer)} left")
        if self._due:
            self._update_metrics(trainer, module)
        self._due, self._drawn = False, time.monotonic()
        self.refresh()

    def _update_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._metric_component is not None:
            self._metric_component.update(figures(trainer.callback_metrics, trainer.progress_bar_metrics))

    @staticmethod
    def _batches(trainer: pl.Trainer) -> float:
        per_step = int(cast(Any, trainer).accumulate_grad_batches)
        return batches_in(trainer.num_training_batches, trainer.max_epochs, trainer.max_steps, per_step)

    def _left(self, trainer: pl.Trainer) -> str:
        return time_left(self._last - self._began, self._done - self._first, self._batches(trainer) - self._done)

    def _line(self, trainer: pl.Trainer) -> None:
        if self.is_disabled and self._done and not self._validated:
            found = figures(trainer.callback_metrics, trainer.progress_bar_metrics)
            parts = [*(f"{name} {value:.4f}" for name, value in found.items()), str(self._speed)]
            said = ", ".join(part for part in parts if part)
            rank_zero_info(f"epoch {self._epoch}: {said}, {self._left(trainer)} left")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the validation's figures; the time that it took is none of the training's."""
        super().on_validation_end(trainer, pl_module)
        self._last, self._validated = time.monotonic(), True
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._stop_progress()

    # What comes after the end is not written above the bars

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the last figures, and leave the bars as they are."""
        self._line(trainer)
        if self.progress is not None and self.train_progress_bar_id is not None:
            self._update_metrics(trainer, pl_module)
            self.progress.refresh()
        self._stop_progress()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the bar as it is."""
        super().on_test_end(trainer, pl_module)
        self._stop_progress()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the bar as it is."""
        super().on_predict_end(trainer, pl_module)
        self._stop_progress()
