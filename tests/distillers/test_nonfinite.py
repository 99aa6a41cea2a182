import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kd_lightning.batch import Batch
from kd_lightning.distillers import Classifier
from kd_lightning.distillers.nonfinite import FiniteWatch, NonFiniteLossError, Noted

BAD = 2


class Keep(pl.Callback):
    """Keeps the weights and the momenta as they are before each step."""

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}
        self.momenta: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.state = {name: value.detach().clone() for name, value in pl_module.named_parameters()}
        self.momenta = momenta(trainer)


def momenta(trainer: pl.Trainer) -> list[Tensor]:
    return [state["momentum_buffer"].clone() for state in trainer.optimizers[0].state.values()]


def batches(bad: float) -> DataLoader[tuple[Tensor, ...]]:
    images, labels = torch.randn(20, 1, 4, 4), torch.arange(20) % 3
    images[BAD * 4 + 1] = bad
    return DataLoader(TensorDataset(images, labels), batch_size=4)


def classifier() -> Classifier:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    return Classifier(net, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1), num_classes=3)


def trainer(folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator=options.pop("accelerator", "cpu"),
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
        callbacks=list(callbacks),
        **options,
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_run_stops_before_the_weights_change(tmp_path: Path, bad: float) -> None:
    module, keep, loader = classifier(), Keep(), batches(bad)
    run = trainer(tmp_path / "new folder", keep)
    with pytest.raises(NonFiniteLossError, match=f"the loss is nan at step {BAD}, epoch 0 .ce nan.: stopped before"):
        run.fit(module, loader)
    assert run.global_step == BAD
    after = dict(module.named_parameters())
    assert after.keys() == keep.state.keys()
    assert all(torch.equal(after[name], value) for name, value in keep.state.items())
    assert len(keep.momenta) == 4
    assert all(torch.equal(a, b) for a, b in zip(momenta(run), keep.momenta, strict=True))


def test_the_file_holds_what_is_needed_to_replay_the_step(tmp_path: Path) -> None:
    module, keep, loader = classifier(), Keep(), batches(math.nan)
    with pytest.raises(NonFiniteLossError) as caught:
        trainer(tmp_path, keep).fit(module, loader)
    (path,) = tmp_path.glob("nonfinite-rank*.pt")
    assert path.name == "nonfinite-rank0.pt"
    assert str(path) in str(caught.value)
    found = torch.load(path, weights_only=True)
    assert (found["global_step"], found["epoch"], found["rank"]) == (BAD, 0, 0)
    batch = Batch(**found["batch"])
    images, labels = list(loader)[BAD]
    assert torch.equal(batch.image.nan_to_num(7.0), images.nan_to_num(7.0))
    assert torch.equal(batch.target, labels)
    for name, value in keep.state.items():
        assert torch.equal(found["state_dict"][name], value)
    again = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    again.load_state_dict(
        {key.removeprefix("student."): v for key, v in found["state_dict"].items() if "student" in key}
    )
    assert again(batch.image).isnan().any()


def test_a_finite_loss_passes_and_leaves_no_file(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.fit(classifier(), batches(1e3))
    assert run.global_step == 5
    assert not list(tmp_path.glob("nonfinite*"))


def test_the_message_names_the_samples_where_they_are_known(tmp_path: Path) -> None:
    image = {"default": torch.full((1, 4, 4), math.nan)}
    samples: Any = [Batch(image, torch.tensor(1), torch.tensor(row), torch.tensor(0)) for row in range(40, 44)]
    with pytest.raises(NonFiniteLossError, match=r"samples \[40, 41, 42, 43\]"):
        trainer(tmp_path).fit(classifier(), DataLoader(samples, batch_size=4))


def noted(value: float) -> Noted:
    loss = torch.tensor(value)
    batch = Batch({"default": torch.zeros(2, 1, 4, 4)}, torch.zeros(2).long(), torch.tensor([5, 6]))
    return Noted(loss, {"ce": loss}, batch, torch.isfinite(loss), None)


def test_what_was_noted_is_looked_at_before_the_step(tmp_path: Path) -> None:
    module, watch = classifier(), FiniteWatch()
    module.trainer = trainer(tmp_path)
    watch._noted = [noted(1.0), noted(2.0)]
    watch.settle(module)
    assert watch._noted == []
    watch._noted = [noted(1.0), noted(math.inf), noted(2.0)]  # of an accumulated gradient
    with pytest.raises(NonFiniteLossError, match=r"the loss is inf at step 0, epoch 0 \(ce inf; samples \[5, 6\]"):
        watch.settle(module)
    assert list(tmp_path.glob("nonfinite-rank0.pt"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_weights_stay_as_they_were(tmp_path: Path) -> None:
    module, keep = classifier(), Keep()
    with pytest.raises(NonFiniteLossError):
        trainer(tmp_path, keep, accelerator="gpu", devices=1).fit(module, batches(math.nan))
    assert all(torch.equal(value.cpu(), keep.state[name].cpu()) for name, value in module.named_parameters())
