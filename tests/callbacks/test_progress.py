"""The progress that a person sees: on a terminal, and in a file."""

import io
import logging
import os
import pty
import re
import struct
import subprocess
import sys
from collections.abc import Mapping
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kd_lightning.callbacks import Progress
from kd_lightning.callbacks import progress as module_of_progress
from kd_lightning.callbacks.progress import figures

STUDENT = Path(__file__).parents[2] / "configs/digits/supervised/student.yaml"
STYLES = re.compile(r"\x1b\[[0-9;]*m")
SHORT = ("--trainer.max_epochs=2", "--trainer.accelerator=cpu", "--experiment=e", "--run=r")
QUIET: dict[str, Any] = {
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "logger": False,
    "accelerator": "cpu",
}


class Toy(pl.LightningModule):
    """Logs a term as this package's modules do, and validates if it is given something."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.layer(batch[0]).square().mean()  # type: ignore[no-any-return]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.trainer.callback_metrics["train/ce"] = torch.tensor(0.25)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/top1", 0.75)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/top1", 0.75)

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.layer(batch[0])  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Failing(Toy):
    def on_train_epoch_end(self) -> None:
        raise ArithmeticError("stopped")


@pytest.fixture
def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.zeros(40, 3), torch.zeros(40)), batch_size=4)


def on_a_terminal() -> tuple[Progress, io.StringIO]:
    shown = io.StringIO()
    return Progress(console_kwargs={"file": shown, "force_terminal": True, "width": 160}), shown


def said(shown: io.StringIO) -> str:
    return STYLES.sub("", shown.getvalue())


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("epoch ")]


def test_the_terms_come_first_and_the_validation_last() -> None:
    metrics = {"val/loss": 2.0, "val/top1": torch.tensor(0.5), "train/ce": torch.tensor(0.25), "train/loss": 1.0}
    found = figures(metrics, {"loss": 1.0, "own": 3})
    assert list(found.items()) == [("ce", 0.25), ("loss", 1.0), ("own", 3.0), ("val/top1", 0.5)]
    assert figures({}, {}) == {}


def test_a_terminal_shows_epoch_and_training_speed_time_left_terms_and_validation(loader: DataLoader[Any]) -> None:
    bar, shown = on_a_terminal()
    pl.Trainer(max_epochs=2, callbacks=[bar], **QUIET).fit(Toy(), loader, loader)
    assert re.search(r"Epoch 1/1 +━+ 10/10 [\d,]+ images/s +ce: 0.25 val/top1: 0.75 *\r?\n", said(shown))
    assert re.search(r"Training +━+ 20/20 0:00:00 left", said(shown))


def test_tests_and_predictions_have_a_bar(loader: DataLoader[Any]) -> None:
    bar, shown = on_a_terminal()
    trainer = pl.Trainer(callbacks=[bar], **QUIET)
    trainer.test(Toy(), loader, verbose=False)
    trainer.validate(Toy(), loader, verbose=False)
    trainer.predict(Toy(), loader, return_predictions=False)
    for what in ("Testing", "Validation", "Predicting"):
        assert re.search(rf"{what} +━+ 10/10", said(shown))


def test_figures_are_asked_for_no_more_often_than_they_are_logged(
    loader: DataLoader[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def counted(metrics: Mapping[str, Any], shown: Mapping[str, Any]) -> dict[str, float]:
        asked.append(1)
        return {}

    monkeypatch.setattr(module_of_progress, "figures", counted)
    monkeypatch.setattr(module_of_progress, "BETWEEN", 0.0)
    bar, _ = on_a_terminal()
    pl.Trainer(max_epochs=1, callbacks=[bar], log_every_n_steps=5, **QUIET).fit(Toy(), loader)
    assert len(asked) == 4  # before the first step and after the fifth, at the end of the epoch and of the training


def test_terms_may_be_logged_at_the_end_of_each_epoch_alone(loader: DataLoader[Any]) -> None:
    bar, shown = on_a_terminal()
    pl.Trainer(max_epochs=1, callbacks=[bar], log_every_n_steps=0, **QUIET).fit(Toy(), loader)
    assert re.search(r"Training +━+ 10/10 0:00:00 left", said(shown))


def test_steps_that_follow_each_other_quickly_are_not_drawn(
    loader: DataLoader[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bar, _ = on_a_terminal()
    drawn: list[int] = []
    monkeypatch.setattr(bar, "_draw", lambda trainer, module, batches: drawn.append(batches))
    monkeypatch.setattr(module_of_progress, "BETWEEN", float("inf"))
    pl.Trainer(max_epochs=1, callbacks=[bar], **QUIET).fit(Toy(), loader)
    assert drawn == [10]  # the last of the epoch


def test_in_a_file_an_epoch_without_validation_has_one_line(
    loader: DataLoader[Any], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    pl.Trainer(max_epochs=3, callbacks=[Progress(console_kwargs={"file": io.StringIO()})], **QUIET).fit(Toy(), loader)
    lines = lines_of(caplog)
    assert [line.split(":")[0] for line in lines] == ["epoch 0", "epoch 1", "epoch 2"]
    for line in lines:
        assert re.fullmatch(r"epoch \d: ce 0\.2500, [\d,]+ images/s, \d:\d\d:\d\d left", line)
    assert lines[-1].endswith(" 0:00:00 left")
    assert capsys.readouterr().out == ""


def test_in_a_file_a_validation_has_its_own_line(loader: DataLoader[Any], caplog: pytest.LogCaptureFixture) -> None:
    file = io.StringIO()
    trainer = pl.Trainer(max_epochs=2, callbacks=[Progress(console_kwargs={"file": file})], **QUIET)
    trainer.fit(Toy(), loader, loader)
    assert lines_of(caplog) == []
    assert file.getvalue() == ""


def test_other_ranks_show_nothing() -> None:
    bar, _ = on_a_terminal()
    bar.setup(SimpleNamespace(is_global_zero=False), Toy(), "fit")  # type: ignore[arg-type]
    assert bar.is_disabled


@pytest.mark.parametrize("module", [Toy(), Failing()])
def test_the_log_is_given_its_stream_back(
    module: Toy, loader: DataLoader[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "__stderr__", stream)
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("lightning.pytorch")
    logger.addHandler(handler)
    streams = []

    class Look(pl.Callback):
        def on_train_epoch_start(self, *args: Any) -> None:
            streams.append(handler.stream)

    bar, _ = on_a_terminal()
    try:
        pl.Trainer(max_epochs=1, callbacks=[bar, Look()], **QUIET).fit(module, loader)
    except ArithmeticError:
        pass
    finally:
        logger.removeHandler(handler)
    assert streams[0] is not stream
    assert handler.stream is stream


@pytest.mark.parametrize("rate", [0, 11])
def test_pictures_in_a_second_have_a_range(rate: int) -> None:
    with pytest.raises(ValueError, match=f"refresh_rate must be in 1 … 10, got {rate}"):
        Progress(refresh_rate=rate)


# By the command line


def environment() -> dict[str, str]:
    left_out = ("FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    return {key: value for key, value in os.environ.items() if key not in left_out} | {"TERM": "xterm"}


def read_to_the_end(terminal: int) -> str:
    parts = []
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # Linux says so where the other side is closed
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts).decode()


def test_a_person_at_a_terminal_sees_terms_speed_time_left_and_the_card(tmp_path: Path) -> None:
    terminal, inside = pty.openpty()
    ioctl(inside, TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    line = [sys.executable, "-m", "kd_lightning", "fit", "--config", str(STUDENT), *SHORT]
    with subprocess.Popen(line, cwd=tmp_path, env=environment(), stdin=inside, stdout=inside, stderr=inside) as fitting:
        os.close(inside)
        shown = STYLES.sub("", read_to_the_end(terminal))
    os.close(terminal)
    assert fitting.returncode == 0, shown
    assert re.search(r"Epoch 1/1 +━+ 10/10 [\d,]+ images/s +ce: \d\S* loss: \d\S* val/top1: 0\.\d+", shown)
    assert re.search(r"Training +━+ 20/20 0:00:00 left", shown)
    assert re.search(r"│ student +│ cifar_resnet8\(widths=\[2, 2, 4, 8\]\), 1,384 parameters", shown)
    for epoch in range(2):
        assert re.search(rf"(\x1b\[2K|\n)epoch {epoch}: val top1 ", shown)  # a line of its own, above the bars
    assert shown.index("Training") < shown.index("kd-lightning report runs/e/r")


@pytest.mark.slow
def test_a_pipe_is_given_plain_lines(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "kd_lightning", "fit", "--config", str(STUDENT), *SHORT]
    done = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
    written = done.stdout + done.stderr
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", written)
    assert "━━━━━━━━━━━━━━━━━━━━" not in done.stdout
    assert [epoch for epoch in range(2) if written.count(f"epoch {epoch}: ") == 1] == [0, 1]
    assert "1,384 parameters" in written
