"""What the door adds to a trainer, and what it writes down of it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import Callback, ModelSummary, ProgressBar, TQDMProgressBar

from kd_lightning.callbacks import Progress, RunCard, RunRecord, StudentEMA
from kd_lightning.cli.door import Door
from kd_lightning.cli.parser import guard
from kd_lightning.run_folder import RunFolder

CONFIGS = Path(__file__).parents[2] / "configs"
STUDENT = CONFIGS / "digits/supervised/student.yaml"
Callbacks = Callable[..., list[Callback]]


@pytest.fixture
def callbacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callbacks:
    """Those of the trainer that a command line makes."""
    monkeypatch.chdir(tmp_path)
    guard([])

    def made(*options: str) -> list[Callback]:
        door = Door(["fit", "--config", str(STUDENT), "--trainer.accelerator=cpu", *options])
        return list(door.trainer.callbacks)  # type: ignore[attr-defined]

    return made


def bars(found: list[Callback]) -> list[type[Callback]]:
    return [type(callback) for callback in found if isinstance(callback, ProgressBar)]


def test_a_run_has_the_progress_and_then_the_card_and_no_summary(callbacks: Callbacks) -> None:
    found = callbacks()
    kinds = [type(callback) for callback in found]
    assert bars(found) == [Progress]
    assert kinds.index(Progress) < kinds.index(RunCard)
    assert not any(isinstance(callback, ModelSummary) for callback in found)


def test_a_bar_of_the_users_own_is_the_only_one(callbacks: Callbacks) -> None:
    assert bars(callbacks("--trainer.callbacks+=lightning.pytorch.callbacks.TQDMProgressBar")) == [TQDMProgressBar]


def test_there_is_no_bar_where_none_is_wanted_but_a_summary_where_one_is(callbacks: Callbacks) -> None:
    found = callbacks("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=true")
    assert bars(found) == []
    assert any(isinstance(callback, ModelSummary) for callback in found)
    assert any(isinstance(callback, RunCard) for callback in found)


def test_settings_of_the_progress_are_stated_as_of_any_callback(callbacks: Callbacks) -> None:
    found = callbacks("--trainer.callbacks+=kd_lightning.callbacks.Progress", "--trainer.callbacks.refresh_rate=2")
    assert [callback.refresh_rate for callback in found if isinstance(callback, Progress)] == [2]


def test_the_record_comes_before_what_the_user_adds(callbacks: Callbacks) -> None:
    kinds = [type(callback) for callback in callbacks("--trainer.callbacks+=kd_lightning.callbacks.StudentEMA")]
    assert kinds[:2] == [RunRecord, StudentEMA]


def tracked(door: Door) -> tuple[str, str]:
    """Folder and id of a run as its last logger knows them."""
    logger = door.trainer.loggers[-1]
    return str(logger.save_dir), str(logger.version)


@pytest.mark.parametrize(("overlay", "ids"), [("wandb", ("e-r", "e-b")), ("tensorboard", ("", ""))])
def test_a_run_made_of_the_configuration_of_another_is_a_run_of_its_own(
    overlay: str, ids: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    guard([])
    line = ["fit", "--config", str(STUDENT), "--config", str(CONFIGS / f"logger/{overlay}.yaml"), "--experiment=e"]
    first = Door([*line, "--run=r", "--trainer.accelerator=cpu"])
    config = Path("runs/e/r/config.yaml")
    config.write_text(first.text)
    for same in (first, Door(["fit", "--config", str(config)], RunFolder(config.parent))):
        assert tracked(same) == ("runs/e/r", ids[0])
    assert tracked(Door(["fit", "--config", str(config), "--run=b"])) == ("runs/e/b", ids[1])
