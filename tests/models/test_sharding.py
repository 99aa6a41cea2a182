from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from kd_lightning.batch import Batch
from kd_lightning.callbacks import StudentEMA
from kd_lightning.distillers import BornAgainDistiller, Term
from kd_lightning.losses import CrossEntropy, SoftTarget
from kd_lightning.models import EnsembleTeacher, FrozenTeacher, MovingAverageTeacher, Network, Teacher, Views
from kd_lightning.models.sharding import is_sharded, part_like, shard, units, whole

IMAGE = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    """A mesh of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 4, 3).to(memory_format=torch.channels_last)
    return nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


@pytest.mark.parametrize(
    ("name", "count"), [("vit_tiny_patch16_224", 12), ("regnety_002", 0), ("convnext_atto", 4), ("resnet18", 0)]
)
def test_units_are_what_the_network_offers(name: str, count: int) -> None:
    model: Any = timm.create_model(name)
    found = units(model)
    assert len(found) == count
    assert found == list(model.blocks if name.startswith("vit") else getattr(model, "stages", []))


def test_a_sharded_network_answers_as_before(mesh: DeviceMesh) -> None:
    plain, sharded = network(), network()
    shard(sharded, mesh)
    assert not is_sharded(plain)
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    torch.testing.assert_close(sharded.eval()(IMAGE), plain.eval()(IMAGE))
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())  # they were freed again


def test_whole_and_part(mesh: DeviceMesh) -> None:
    sharded = network()
    shard(sharded, mesh)
    for name, value in sharded.state_dict().items():
        entire = whole(value)
        assert isinstance(entire, torch.Tensor)
        assert not isinstance(entire, DTensor)
        torch.testing.assert_close(entire, network().state_dict()[name])
        part = part_like(entire, value)
        assert isinstance(part, DTensor) == isinstance(value, DTensor)
    assert whole("text") == part_like("text", value) == "text"


def test_a_single_number_cannot_be_sharded(mesh: DeviceMesh) -> None:
    module = nn.Module()
    module.theta = nn.Parameter(torch.ones(()))
    with pytest.raises(ValueError, match="the parameter theta is a single number, .* take the strategy ddp"):
        shard(module, mesh)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("several", [True, False])
def test_a_sharded_teacher_answers_as_before(mesh: DeviceMesh, fold: bool, several: bool) -> None:
    batch = Batch({"default": IMAGE}, torch.zeros(3, dtype=torch.int64))

    def answer(sharded: bool) -> torch.Tensor:
        one = FrozenTeacher(network(), check=False, fold=fold)
        teacher: Teacher = one
        if several:
            teacher = EnsembleTeacher({"a": one, "b": FrozenTeacher(network(), check=False)})
        teacher.setup(3, Views((1, 8, 8)), [])
        if sharded:
            teacher.shard(mesh)
        teacher.to(torch.device("cpu"))
        logits = [teacher(batch).logits for _ in range(2)]
        assert one.network is not None
        assert is_sharded(one.network) == sharded
        assert any(isinstance(module, nn.BatchNorm2d) for module in one.network.modules()) != (sharded and fold)
        assert torch.equal(*logits)
        return logits[0]

    torch.testing.assert_close(answer(True), answer(False))


def test_the_classifier_of_a_sharded_teacher_serves_outside_of_it(mesh: DeviceMesh) -> None:
    teacher = FrozenTeacher(network(), check=False)
    teacher.setup(3, Views((1, 8, 8)), [])
    teacher.shard(mesh)
    classify, embedding = teacher.classifier(), torch.randn(5, 144)
    teacher(Batch({"default": IMAGE}, torch.zeros(3, dtype=torch.int64)))
    torch.testing.assert_close(classify(embedding), network()[4](embedding))


def test_a_moving_average_is_refused(mesh: DeviceMesh) -> None:
    with pytest.raises(ValueError, match="fsdp spreads over ranks: take the strategy ddp"):
        MovingAverageTeacher().shard(mesh)


def test_a_weight_average_is_refused(mesh: DeviceMesh) -> None:
    module: Any = nn.Module()
    module.student = network()
    shard(module.student, mesh)
    with pytest.raises(ValueError, match="StudentEMA cannot average a student that fsdp spreads"):
        StudentEMA()._build(module)


def test_a_scheme_that_cannot_be_spread_is_refused() -> None:
    distiller = BornAgainDistiller(
        Network("cifar_resnet20"),
        {"kd": Term(SoftTarget()), "ce": Term(CrossEntropy(), teacher=None)},
        lambda p: torch.optim.SGD(p, 0.1),
        2,
    )
    with pytest.raises(ValueError, match="BornAgainDistiller cannot be trained with fsdp: take the strategy ddp"):
        distiller.shard()


def test_a_compiled_teacher_is_not_spread() -> None:
    teacher = FrozenTeacher(nn.Linear(2, 2), check=False, compile="eager")
    with pytest.raises(ValueError, match="is not compiled: leave teacher.compile out"):
        teacher.shard(None)  # type: ignore[arg-type]
