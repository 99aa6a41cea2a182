"""On a GPU, a training step is put in line without the host waiting for it; where it waits on purpose is not asked."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from kd_lightning.batch import Batch
from kd_lightning.callbacks import StudentEMA
from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.datamodules.base import Split
from kd_lightning.datamodules.folder_loader import FolderLoader, RawBatch
from kd_lightning.datamodules.in_memory import InMemoryLoader
from kd_lightning.datamodules.mixing import Mixing
from kd_lightning.datamodules.plan import EpochPlan
from kd_lightning.datamodules.views import View
from kd_lightning.distillers import OfflineDistiller, Term
from kd_lightning.losses import CrossEntropy, SoftTarget
from kd_lightning.models import FrozenTeacher, Network
from kd_lightning.seeds import hashed

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
WARM = 2  # steps in which teachers are folded, tables made and sums begun
STEPS = 6
CLOSE = [None, Mixing(mixup_alpha=0.4)]  # a box's edge may be a pixel off where a share is rounded differently


@contextmanager
def no_waiting() -> Iterator[None]:
    """Inside, it is an error if the host waits for the GPU; what waits for an event is not noticed."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class StrictLoader(InMemoryLoader):
    """Does not wait for any batch after the first ones."""

    def fetch(self, position: int) -> Iterator[Batch]:
        batches = super().fetch(position)
        for _ in range(WARM):
            yield next(batches)
        for _ in range(position + WARM, len(self.plan)):
            with no_waiting():
                batch = next(batches)
            yield batch


class StrictDigits(DigitsDataModule):
    def loader(self, split: Split, plan: EpochPlan, device: torch.device) -> InMemoryLoader:
        made = StrictLoader if plan.train else InMemoryLoader
        return made(plan, device, self.store(split, device), self.views, self.mixing, self.mean, self.std)


class StrictDistiller(OfflineDistiller):
    """Does not wait in the forward pass of any step after the first ones."""

    strict = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx < WARM:
            return super().training_step(batch, batch_idx)
        with no_waiting():
            loss = super().training_step(batch, batch_idx)
        self.strict += 1
        return loss


class StrictEMA(StudentEMA):
    """Does not wait where the average moves."""

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        with no_waiting():
            super().on_train_batch_end(*args, **kwargs)


def keep_images_on(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "host":
        monkeypatch.setattr("kd_lightning.datamodules.in_memory.OF_FREE", 0.0)


@pytest.mark.parametrize("mixing", [None, Mixing(0.4, 1.0)], ids=str)
@pytest.mark.parametrize("where", ["device", "host"])
def test_a_step_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, mixing: Mixing | None
) -> None:
    keep_images_on(where, monkeypatch)
    pl.seed_everything(0)
    teacher = Network("cifar_resnet8").build(10, in_chans=1, seed=3)
    module = StrictDistiller(
        student=Network("cifar_resnet8", {"widths": [2, 2, 4, 8]}),
        teacher=FrozenTeacher(teacher, check=False),
        criteria={"ce": Term(CrossEntropy(), teacher=None), "kd": Term(SoftTarget(4.0))},
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        accelerator="gpu", devices=1, max_epochs=1, limit_train_batches=STEPS, limit_val_batches=0,
        default_root_dir=tmp_path, enable_model_summary=False, callbacks=[StrictEMA(0.9)], **options,
    )  # fmt: skip
    data = StrictDigits(views={"default": View(1, flip=False, cutout=2)}, mixing=mixing)
    trainer.fit(module, data)
    assert module.strict == STEPS - WARM
    assert data.store("train", trainer.strategy.root_device).packed.is_cuda == (where == "device")


def names_of(batch: Batch) -> Mapping[str, Tensor | None]:
    return {"target": batch.target, "index": batch.index, "number": batch.number}


@pytest.mark.parametrize("mixing", CLOSE, ids=str)
@pytest.mark.parametrize("where", ["device", "host"])
def test_batches_are_those_of_the_host(monkeypatch: pytest.MonkeyPatch, where: str, mixing: Mixing | None) -> None:
    keep_images_on(where, monkeypatch)
    data = DigitsDataModule(seed=3, mixing=mixing)
    data.setup()
    here, there = (data.loader("train", data.plan("train", train=True), device) for device in (CPU, GPU))
    for loader in (here, there):
        loader.load_state_dict({"epoch": 0, "position": 3})
    batches = list(zip(here, there, strict=True))
    assert len(batches) == len(here) - 3
    for one, other in batches:
        torch.testing.assert_close(other.image.cpu(), one.image)
        for name, value in names_of(other).items():
            assert value is not None
            assert value.is_cuda
            torch.testing.assert_close(value.cpu(), names_of(one)[name])


def test_a_hash_does_not_wait() -> None:
    rows, numbers = torch.arange(5), torch.full((5,), 2)
    wanted = hashed(3, "default", rows, 7, numbers, "crop")
    rows, numbers = rows.to(GPU), numbers.to(GPU)
    with no_waiting():
        found = hashed(3, "default", rows, 7, numbers, "crop")
    assert found.is_cuda
    assert torch.equal(found.cpu(), wanted)


@pytest.mark.parametrize("mixing", CLOSE, ids=str)
def test_a_batch_of_encoded_images_is_finished_without_waiting(mixing: Mixing | None) -> None:
    images: Any = SimpleNamespace(labels=torch.arange(9) % 3, classes=("a", "b", "c"))
    transform: Any = None
    plan = EpochPlan(torch.arange(9), 4, seed=3, train=True)
    pixels, names = torch.randint(256, (4, 8, 8, 3), dtype=torch.uint8), torch.tensor([[7, 0], [2, 0], [8, 0], [4, 0]])

    def loader(device: torch.device) -> FolderLoader:
        mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
        return FolderLoader(plan, device, images, transform, size=8, mean=mean, std=std, workers=0, mixing=mixing)

    wanted = loader(CPU).finish(RawBatch(pixels, names, None))
    there, pinned = loader(GPU), RawBatch(pixels.pin_memory(), names.pin_memory(), None)
    there.finish(pinned)  # makes tables
    with no_waiting():
        found = there.finish(pinned)
    torch.testing.assert_close(found.image.cpu(), wanted.image)
    for name, value in names_of(found).items():
        assert value is not None
        torch.testing.assert_close(value.cpu(), names_of(wanted)[name])
