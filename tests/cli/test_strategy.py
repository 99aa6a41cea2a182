from typing import Any

import lightning.pytorch as pl
import pytest
import timm
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from kd_lightning.cli.strategy import chosen, has_static_graph, several_devices
from kd_lightning.distillers import (
    DML,
    Classifier,
    FullySharded,
    OfflineDistiller,
    OnlineDistiller,
    Peer,
    QuietDDP,
    Ramp,
    Term,
    Window,
)
from kd_lightning.distillers.quiet_ddp import has_buffers_to_read
from kd_lightning.losses import CrossEntropy, CurriculumTemperature, Hint, SoftTarget
from kd_lightning.models import FrozenTeacher, MovingAverageTeacher, Network

SEVERAL: dict[str, Any] = {"strategy": "auto", "devices": 2, "accelerator": "cpu"}


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1)


def offline(**more: Term) -> OfflineDistiller:
    terms = {"kd": Term(SoftTarget()), "ce": Term(CrossEntropy(), 0.5, teacher=None), **more}
    return OfflineDistiller(nn.Linear(2, 2), FrozenTeacher(nn.Linear(2, 2)), terms, sgd)


def online() -> OnlineDistiller:
    peers = {name: Peer(Network("cifar_resnet20")) for name in "ab"}
    return OnlineDistiller(peers, DML(), sgd, {"kd": Term(SoftTarget())})


class Plain(nn.Module):
    def forward(self, student: torch.Tensor, teacher: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (student - teacher).square().mean()


class Centred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(2))


@pytest.mark.parametrize(
    ("part", "reads"),
    [
        (nn.Linear(2, 2), False),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), False),
        (timm.layers.BatchNormAct2d(2), False),
        (nn.SyncBatchNorm(2), False),
        (nn.Sequential(nn.Linear(2, 2), Centred()), True),
    ],
)
def test_what_a_step_may_read_is_exchanged(part: nn.Module, reads: bool) -> None:
    assert has_buffers_to_read(part) == reads


def following() -> OfflineDistiller:
    student = nn.Linear(2, 2)
    return OfflineDistiller(student, MovingAverageTeacher(), {"kd": Term(SoftTarget())}, sgd)


class OnesOwn(SoftTarget):
    """Who knows what it does?"""


@pytest.mark.parametrize(
    ("module", "static", "quiet"),
    [
        (Classifier(nn.Linear(2, 2), sgd), True, True),
        (offline(), True, True),
        (offline(hint=Term(Hint("conv_bn_relu"), 3)), True, True),
        (offline(late=Term(Hint(), Window(1.0, start=2))), False, True),
        (offline(more=Term(Hint(), Ramp(1.0, 3))), False, True),
        (offline(soft=Term(CurriculumTemperature(SoftTarget(), epochs=2))), False, True),
        (offline(own=Term(Plain())), False, True),
        (offline(own=Term(OnesOwn())), False, True),
        (following(), True, False),
        (online(), False, False),
        (pl.LightningModule(), False, False),
    ],
)
def test_no_more_is_said_than_must_be(module: pl.LightningModule, static: bool, quiet: bool) -> None:
    assert has_static_graph(module) == static
    strategy = chosen(SEVERAL, module)
    assert isinstance(strategy, QuietDDP if quiet else DDPStrategy)
    assert isinstance(strategy, QuietDDP) == quiet
    assert strategy._ddp_kwargs == {"gradient_as_bucket_view": True, "static_graph": static}


def test_a_scheme_of_ones_own_may_change_its_graph() -> None:
    class Own(OfflineDistiller):
        pass

    own = Own(nn.Linear(2, 2), FrozenTeacher(nn.Linear(2, 2)), {"kd": Term(SoftTarget())}, sgd)
    assert not has_static_graph(own)


@pytest.mark.parametrize(
    "options", [{"accumulate_grad_batches": 2}, {"callbacks": [GradientAccumulationScheduler({3: 2})]}]
)
def test_gradients_are_not_accumulated_over_a_static_graph(options: dict[str, Any]) -> None:
    strategy = chosen(SEVERAL | options, offline())
    assert isinstance(strategy, DDPStrategy)
    assert strategy._ddp_kwargs == {"gradient_as_bucket_view": True, "static_graph": False}


def test_what_was_stated_by_its_class_stays() -> None:
    stated = DDPStrategy(find_unused_parameters=True)
    assert chosen({"strategy": stated, "devices": 2}, offline()) is stated
    assert chosen({"strategy": "ddp_spawn", "devices": 2}, offline()) == "ddp_spawn"


def test_one_device_needs_no_strategy() -> None:
    assert chosen({"strategy": "auto", "devices": 1, "accelerator": "cpu"}, offline()) == "auto"
    assert chosen({"strategy": "auto", "devices": 8, "accelerator": "tpu"}, offline()) == "auto"
    assert chosen({}, offline()) == "auto"
    assert isinstance(chosen({"strategy": "ddp", "devices": 1}, offline()), DDPStrategy)


def test_fsdp_is_this_packages() -> None:
    assert isinstance(chosen({"strategy": "fsdp", "devices": 2}, offline()), FullySharded)


@pytest.mark.parametrize(
    ("devices", "accelerator", "nodes", "gpus", "several"),
    [
        (1, "cpu", 1, 0, False),
        (2, "cpu", 1, 0, True),
        ("2", "cpu", 1, 0, True),
        (1, "gpu", 2, 1, True),
        ([3], "gpu", 1, 8, False),
        ([0, 1], "gpu", 1, 8, True),
        ("0,1", "gpu", 1, 8, True),
        ("1,", "gpu", 1, 8, False),
        ("auto", "auto", 1, 8, True),
        (-1, "gpu", 1, 8, True),
        ("-1", "gpu", 1, 1, False),
        ("auto", "auto", 1, 0, False),
        ("auto", "cpu", 1, 8, False),
    ],
)
def test_several_devices(
    devices: object, accelerator: str, nodes: int, gpus: int, several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert several_devices(devices, accelerator, nodes) == several
