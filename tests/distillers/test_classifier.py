from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from kd_lightning.callbacks import SafeCheckpointIO
from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.distillers import Classifier, ShareMultiStepLR
from kd_lightning.losses import CrossEntropy


def net(classes: int = 10) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, classes))


def sgd(lr: float = 0.1, decay: float = 0.0) -> Any:
    return lambda p: torch.optim.SGD(p, lr, momentum=0.9, weight_decay=decay)


def trainer(folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    stated = {"max_epochs": 1, "log_every_n_steps": 1} | options
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
        callbacks=list(callbacks),
        **stated,
    )


def digits_like(count: int = 40, classes: int = 10) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(torch.randn(count, 1, 8, 8), torch.arange(count) % classes), batch_size=8)


def test_it_learns_the_digits(tmp_path: Path) -> None:
    module = Classifier(net(), sgd(lr=0.03))
    run = trainer(tmp_path, max_epochs=5)
    data = DigitsDataModule()
    run.fit(module, data)
    assert set(run.callback_metrics) == {"train/ce", "train/loss", "val/top1", "val/top5", "val/loss"}
    (figures,) = run.test(module, data, verbose=False)
    assert figures["test/top1"] > 0.7
    assert figures.keys() == {"test/top1", "test/top5", "test/loss", "test/ece"}


def test_test_figures_are_those_of_the_student_by_hand(tmp_path: Path) -> None:
    module, data = Classifier(net(), sgd()), DigitsDataModule(eval_batch_size=67)
    run = trainer(tmp_path)
    (figures,) = run.test(module, data, verbose=False)
    batches = list(data.test_dataloader())
    images, labels = torch.cat([b.image for b in batches]), torch.cat([b.target for b in batches])
    assert len(labels) == 450
    with torch.no_grad():
        logits = module(images)
    assert figures["test/top1"] == pytest.approx((logits.argmax(1) == labels).float().mean().item(), abs=1e-6)
    assert figures["test/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-5)


@pytest.mark.parametrize(("smoothing", "every"), [(0.0, 100), (0.1, 0)])  # every 0 steps is never
def test_the_logged_term_is_the_mean_over_the_samples(tmp_path: Path, smoothing: float, every: int) -> None:
    student, loader = net(), digits_like(20)  # batches of 8, 8 and 4
    run = trainer(tmp_path, log_every_n_steps=every)
    run.fit(Classifier(student, sgd(lr=0.0), loss=CrossEntropy(smoothing), num_classes=10), loader)
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    expected = F.cross_entropy(student(images), labels, label_smoothing=smoothing).item()
    assert run.callback_metrics["train/ce"].item() == pytest.approx(expected, abs=1e-5)
    assert run.callback_metrics["train/loss"].item() == pytest.approx(expected, abs=1e-5)


def test_a_foreign_loader_needs_the_number_of_classes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="number of classes is not known: give num_classes"):
        trainer(tmp_path).fit(Classifier(net(), sgd()), digits_like())


def test_two_numbers_of_classes_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_classes is 7, but the data has 10 classes"):
        trainer(tmp_path).fit(Classifier(net(7), sgd(), num_classes=7), DigitsDataModule())


@pytest.mark.parametrize("label", [10, -100])
def test_a_label_that_is_no_class_is_an_error(tmp_path: Path, label: int) -> None:
    labels = torch.zeros(16, dtype=torch.int64)
    labels[11] = label
    loader = DataLoader(TensorDataset(torch.randn(16, 1, 8, 8), labels), batch_size=8)
    with pytest.raises(ValueError, match=rf"label of sample 3 of batch 1 must be in 0 … 9, got {label}"):
        trainer(tmp_path).fit(Classifier(net(), sgd(), num_classes=10), loader)


def test_shares_are_stretched_to_the_training(tmp_path: Path) -> None:
    rates: list[float] = []

    class Watch(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    scheduler = lambda optimizer: ShareMultiStepLR(optimizer, [0.5, 0.75])  # noqa: E731  # as a configuration gives it
    module = Classifier(net(), sgd(1e-3), scheduler, num_classes=10)
    trainer(tmp_path, Watch(), max_epochs=4).fit(module, digits_like(16))
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5])


def test_shares_of_the_steps(tmp_path: Path) -> None:
    rates: list[float] = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(
            self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
        ) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    module = Classifier(net(), sgd(1e-3), lambda o: ShareMultiStepLR(o, [0.5]), "step", num_classes=10)
    trainer(tmp_path, Watch(), max_epochs=2).fit(module, digits_like(24))
    assert rates == pytest.approx([1e-3] * 3 + [1e-4] * 3)


def test_shares_of_an_endless_training_are_an_error(tmp_path: Path) -> None:
    module = Classifier(net(), sgd(), lambda o: ShareMultiStepLR(o, [0.5]), num_classes=10)
    with pytest.raises(ValueError, match="needs trainer.max_epochs >= 1, got -1"):
        trainer(tmp_path, max_epochs=-1, max_steps=3).fit(module, digits_like(16))


def test_an_interrupted_training_ends_bit_for_bit_where_the_whole_one_does(tmp_path: Path) -> None:
    def module() -> Classifier:
        torch.manual_seed(1)
        student = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 10))
        return Classifier(student, sgd(0.05, 0.01), lambda o: ShareMultiStepLR(o, [0.5]))

    pl.seed_everything(4)
    whole, first, second = module(), module(), module()
    options: dict[str, Any] = {"limit_train_batches": 3, "limit_val_batches": 0, "plugins": [SafeCheckpointIO()]}
    trainer(tmp_path, max_epochs=2, **options).fit(whole, DigitsDataModule())
    run = trainer(tmp_path, max_epochs=2, max_steps=3, **options)
    run.fit(first, DigitsDataModule())
    run.save_checkpoint(tmp_path / "half.ckpt")
    run = trainer(tmp_path, max_epochs=2, **options)
    run.fit(second, DigitsDataModule(), ckpt_path=tmp_path / "half.ckpt")
    assert run.global_step == 6
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(next(first.parameters()), next(second.parameters()))


def test_a_checkpoint_with_another_rate_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=1)
    run.fit(Classifier(net(), sgd(0.1), num_classes=10), digits_like())
    run.save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(ValueError, match="lr: 0.2 here, 0.1 in the checkpoint"):
        trainer(tmp_path).fit(
            Classifier(net(), sgd(0.2), num_classes=10),
            digits_like(),
            ckpt_path=tmp_path / "one.ckpt",
            weights_only=False,
        )


def test_predictions_are_probabilities_with_the_rows(tmp_path: Path) -> None:
    module, data = Classifier(net(), sgd()), DigitsDataModule(eval_batch_size=200)
    answers: Any = trainer(tmp_path).predict(module, data)
    rows, probabilities = (torch.cat([answer[part] for answer in answers]) for part in (0, 1))
    assert rows.tolist() == list(range(450))
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(450))


def test_before_the_data_is_known_there_is_no_student() -> None:
    with pytest.raises(RuntimeError, match="built by configure_model"):
        Classifier(net(), sgd())(torch.zeros(1, 1, 8, 8))
