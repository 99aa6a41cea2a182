"""The average of the student: its formula, where it is kept, when it stands in."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from kd_lightning.callbacks import StudentEMA
from kd_lightning.callbacks.ema import Average
from kd_lightning.models.weights import read_weights

DECAY, RATE = 0.75, 0.5


class Toy(pl.LightningModule):
    """A student of one weight, which each step lowers by the rate, and one buffer, which each step raises by 1."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.student.weight, 8.0)
        self.student.register_buffer("count", torch.zeros(1))
        self.own: list[float] = []
        self.seen: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.student.count += 1
        return self.student(batch[0]).mean()  # type: ignore[no-any-return]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.own.append(self.student.weight.item())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen.append(self.student.weight.item())
        self.log("weight", self.student.weight.item())

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.student.parameters(), RATE)


def loader(steps: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.ones(steps, 1)), batch_size=1)


def trainer_of(folder: Path, epochs: int, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        max_epochs=epochs,
        callbacks=list(callbacks),
        num_sanity_val_steps=0,
        **quiet,
        **{"enable_checkpointing": False, **options},
    )


def by_hand(start: float, values: list[float]) -> float:
    for value in values:
        start = DECAY * start + (1 - DECAY) * value
    return start


def average_of(callback: StudentEMA) -> nn.Module:
    assert callback.average is not None
    student = callback.average.module
    assert isinstance(student, nn.Module)
    return student


def test_the_average_is_the_formula_over_three_steps(tmp_path: Path) -> None:
    module, ema = Toy(), StudentEMA(DECAY)
    trainer_of(tmp_path, 1, ema).fit(module, loader(3))
    assert module.own == [7.5, 7.0, 6.5]
    assert average_of(ema).weight.item() == pytest.approx(by_hand(8.0, [7.5, 7.0, 6.5]))
    assert average_of(ema).count.item() == pytest.approx(by_hand(0.0, [1.0, 2.0, 3.0]))
    assert module.student.weight.item() == 6.5


def test_it_moves_when_the_student_does(tmp_path: Path) -> None:
    module, ema = Toy(), StudentEMA(DECAY)
    trainer_of(tmp_path, 1, ema, accumulate_grad_batches=2).fit(module, loader(4))
    assert module.own == [8.0, 7.5, 7.5, 7.0]
    assert average_of(ema).weight.item() == pytest.approx(by_hand(8.0, [7.5, 7.0]))


@pytest.mark.parametrize("evaluate", [True, False])
def test_it_stands_in_for_the_student_in_validation_alone(tmp_path: Path, evaluate: bool) -> None:
    module, ema = Toy(), StudentEMA(DECAY, evaluate)
    trainer_of(tmp_path, 2, ema).fit(module, loader(2), loader(1))
    assert module.own == [7.5, 7.0, 6.5, 6.0]  # training goes on from its own weights
    averages = [by_hand(8.0, module.own[:2]), by_hand(8.0, module.own)]
    assert module.seen == pytest.approx(averages if evaluate else [7.0, 6.0])


def saved(folder: Path) -> tuple[Path, dict[str, Any]]:
    trainer = trainer_of(folder, 1, StudentEMA(DECAY))
    trainer.fit(Toy(), loader(2))
    path = folder / "one.ckpt"
    trainer.save_checkpoint(path)
    return path, torch.load(path, weights_only=True)


def test_the_checkpoint_keeps_it_beside_the_students_state(tmp_path: Path) -> None:
    _, checkpoint = saved(tmp_path)
    assert set(checkpoint["state_dict"]) == {"student.weight", "student.count"}
    assert checkpoint["state_dict"]["student.weight"].item() == 7.0
    assert checkpoint["ema"]["module.weight"].item() == pytest.approx(by_hand(8.0, [7.5, 7.0]))


@pytest.mark.parametrize("evaluate", [True, False])
def test_who_takes_the_weights_gets_what_is_evaluated(tmp_path: Path, evaluate: bool) -> None:
    trainer = trainer_of(tmp_path, 1, StudentEMA(DECAY, evaluate))
    trainer.fit(Toy(), loader(2))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    found = read_weights(tmp_path / "one.ckpt")
    assert found.keys() == {"weight", "count"}
    assert found["weight"].item() == pytest.approx(by_hand(8.0, [7.5, 7.0]) if evaluate else 7.0)


def test_a_resumed_average_goes_on(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    module, ema = Toy(), StudentEMA(DECAY)
    trainer_of(tmp_path, 2, ema).fit(module, loader(2), ckpt_path=path, weights_only=True)
    assert module.own == [6.5, 6.0]
    assert average_of(ema).weight.item() == pytest.approx(by_hand(8.0, [7.5, 7.0, 6.5, 6.0]))


def test_a_sanity_check_before_a_resumed_training_does_not_restart_it(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    module, ema = Toy(), StudentEMA(DECAY)
    trainer = trainer_of(tmp_path, 2, ema)
    trainer.num_sanity_val_steps = 1
    trainer.fit(module, loader(2), loader(1), ckpt_path=path, weights_only=True)
    assert len(module.seen) == 2  # the check's, and that of the epoch
    assert average_of(ema).weight.item() == pytest.approx(by_hand(8.0, [7.5, 7.0, 6.5, 6.0]))


def test_a_checkpoint_without_it_is_not_resumed(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 1)
    trainer.fit(Toy(), loader(2))
    trainer.save_checkpoint(tmp_path / "bare.ckpt")
    with pytest.raises(ValueError, match="no average of the student: it was made without StudentEMA"):
        trainer_of(tmp_path, 2, StudentEMA(DECAY)).fit(Toy(), loader(2), ckpt_path=tmp_path / "bare.ckpt")


def test_a_test_takes_it_from_the_checkpoint(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    module = Toy()
    trainer_of(tmp_path, 1, StudentEMA(DECAY)).test(module, loader(1), ckpt_path=path, verbose=False)
    assert module.seen == pytest.approx([by_hand(8.0, [7.5, 7.0])])
    assert module.student.weight.item() == 7.0


def test_a_test_of_a_checkpoint_without_it_is_an_error(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 1)
    trainer.fit(Toy(), loader(2))
    trainer.save_checkpoint(tmp_path / "bare.ckpt")
    with pytest.raises(ValueError, match="no average of the student: it was made without StudentEMA"):
        trainer_of(tmp_path, 1, StudentEMA(DECAY)).test(Toy(), loader(1), ckpt_path=tmp_path / "bare.ckpt")


@pytest.mark.parametrize("evaluate", [True, False])
def test_a_test_of_a_checkpoint_looks_at_its_average_and_not_at_the_last(tmp_path: Path, evaluate: bool) -> None:
    module, ema = Toy(), StudentEMA(DECAY, evaluate)
    best = pl.callbacks.ModelCheckpoint(tmp_path, monitor="weight", mode="max")  # it falls: the first epoch's
    trainer = trainer_of(tmp_path, 2, ema, best, enable_checkpointing=True)
    trainer.fit(module, loader(2), loader(1))
    last, module.seen = module.own[-1], []
    trainer.test(module, loader(1), verbose=False)
    trainer.test(module, loader(1), ckpt_path="best", verbose=False, weights_only=True)
    trainer.test(module, loader(1), verbose=False)  # the student is still that of the checkpoint
    first = by_hand(8.0, module.own[:2])
    wanted = [by_hand(8.0, module.own), first, first] if evaluate else [last, 7.0, 7.0]
    assert module.seen == pytest.approx(wanted)


@pytest.mark.parametrize("evaluate", [True, False])
def test_what_was_tested_does_not_stay_for_a_later_training(tmp_path: Path, evaluate: bool) -> None:
    path, _ = saved(tmp_path)
    module, ema = Toy(), StudentEMA(DECAY, evaluate)
    trainer_of(tmp_path, 1, ema).test(module, loader(1), ckpt_path=path, verbose=False)
    nn.init.constant_(module.student.weight, 4.0)
    trainer = trainer_of(tmp_path, 1, ema)
    trainer.num_sanity_val_steps = 1
    module.seen = []
    trainer.fit(module, loader(2), loader(1))
    average = by_hand(4.0, [3.5, 3.0])
    assert average_of(ema).weight.item() == pytest.approx(average)
    assert module.seen == pytest.approx([4.0, average if evaluate else 3.0])


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.9999])
def test_it_is_torchs_average_but_for_counts(decay: float) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 5))
    ours = Average(network, decay)
    torchs = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]
    torchs.n_averaged.fill_(1)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(10):
        optimizer.zero_grad()
        network(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        ours.move(network)
        torchs.update_parameters(network)
    theirs, counts = torchs.module.state_dict(), 0
    for name, value in ours.module.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, theirs[name])
        else:
            assert value.item() == 10
            counts += 1
    assert counts == 1
    assert not any(parameter.requires_grad for parameter in ours.parameters())


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_out_of_range(decay: float) -> None:
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got"):
        StudentEMA(decay)


def test_a_module_without_a_student_is_named(tmp_path: Path) -> None:
    module = Toy()
    module.student = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match="Toy has no student to average"):
        StudentEMA().on_train_start(trainer_of(tmp_path, 1), module)


class InGroups(pl.LightningModule):
    """A student of which another process trains a part."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Linear(2, 2)
        self.collaboration = None

    def trained_elsewhere(self) -> list[str]:
        return ["student.weight"]


def test_what_another_process_trains_is_not_averaged() -> None:
    message = "^StudentEMA cannot average student.weight, which another process trains: leave it out"
    with pytest.raises(ValueError, match=message):
        StudentEMA().on_train_start(pl.Trainer(accelerator="cpu", logger=False), InGroups())
