import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import timm
import torch
from torch import Tensor, nn

import kd_lightning.models  # noqa: F401
from kd_lightning.losses import Hint
from kd_lightning.models import Network, SimKDStudent, load_weights, save_weights
from kd_lightning.models.simkd import projector
from kd_lightning.models.tap_plan import classifier_of, plan
from kd_lightning.models.taps import tapped
from kd_lightning.models.weights import read_weights
from kd_lightning.trust import allow

IMAGE = torch.linspace(-1, 1, 4 * 3 * 16 * 16).view(4, 3, 16, 16).sin()


class NoInterface(nn.Module):
    """A network without timm's interface."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class WideHead(NoInterface):
    """One whose classifier is no linear layer."""

    num_features = 3

    def forward_features(self, x: Tensor) -> Tensor:
        return x

    def get_classifier(self) -> nn.Module:
        return nn.Sequential(self.head)

    def reset_classifier(self, num_classes: int) -> None:
        self.head = nn.Linear(3, num_classes)


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """A file of the weights of a teacher of 5 classes."""
    torch.manual_seed(3)
    teacher = timm.create_model("cifar_resnet8x4", num_classes=5)
    nn.init.normal_(teacher.fc.bias)
    save_weights(teacher, tmp_path / "teacher.safetensors")
    return str(tmp_path / "teacher.safetensors")


def teacher_of(weights: str) -> nn.Module:
    network = timm.create_model("cifar_resnet8x4", num_classes=5)
    load_weights(network, weights)
    return network.eval()


def student(weights: str, **options: Any) -> SimKDStudent:
    stated: dict[str, Any] = {"student": {"name": "cifar_resnet8"}, "num_classes": 5} | options
    return SimKDStudent(teacher={"name": "cifar_resnet8x4", "weights": weights}, **stated)


def test_the_projector_by_its_layers() -> None:
    layers = projector(6, 10, 2)
    assert [type(layer) for layer in layers] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 3
    shapes = [tuple(layer.weight.shape) for layer in layers if isinstance(layer, nn.Conv2d)]
    assert shapes == [(5, 6, 1, 1), (5, 5, 3, 3), (10, 5, 1, 1)]
    assert all(layer.bias is None for layer in layers if isinstance(layer, nn.Conv2d))
    assert layers(torch.randn(2, 6, 4, 7)).shape == (2, 10, 4, 7)
    assert projector(6, 2, 8)[0].out_channels == 1  # never none


def test_logits_are_the_teachers_classifier_on_the_mean_of_the_projected_map(weights: str) -> None:
    net = student(weights).eval()
    backbone, teacher = net.backbone, teacher_of(weights)
    features = backbone.neck(backbone.stages(backbone.stem(IMAGE)))
    assert features.shape == (4, 64, 4, 4)
    projected = net.projector(features)
    expected = projected.mean((2, 3)) @ teacher.fc.weight.T + teacher.fc.bias
    torch.testing.assert_close(net(IMAGE), expected)
    torch.testing.assert_close(net.forward_features(IMAGE), projected)
    assert projected.shape == (4, 256, 4, 4)


def test_the_classifier_is_the_teachers_and_fixed(weights: str) -> None:
    net, teacher = student(weights), teacher_of(weights)
    assert net.get_classifier() is net.classifier
    assert torch.equal(net.classifier.weight, teacher.fc.weight)
    assert torch.equal(net.classifier.bias, teacher.fc.bias)
    assert not any(parameter.requires_grad for parameter in net.classifier.parameters())


def test_backbone_and_projector_alone_are_trained(weights: str) -> None:
    net = student(weights)
    before = copy.deepcopy(net.classifier.state_dict())
    trained = [p for p in net.parameters() if p.requires_grad]
    net(IMAGE).square().sum().backward()
    moved = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {name for name, p in net.named_parameters() if p.grad is not None} == {
        name for name, _ in net.named_parameters() if name.startswith(("backbone.", "projector."))
    }
    assert {"backbone.stem.conv.weight", "projector.0.weight", "projector.7.bias"} <= moved
    torch.optim.SGD(trained, 0.1, weight_decay=0.1).step()
    assert all(torch.equal(value, before[name]) for name, value in net.classifier.state_dict().items())


def test_the_backbone_starts_as_the_plain_student_of_the_same_seed(weights: str) -> None:
    torch.manual_seed(11)
    plain = Network("cifar_resnet8").build(5)
    torch.manual_seed(11)
    ours = student(weights).backbone.state_dict()
    expected = {name: value for name, value in plain.state_dict().items() if not name.startswith("fc.")}
    assert ours.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in ours.items())
    torch.manual_seed(12)
    other = student(weights).backbone.state_dict()
    assert not torch.equal(other["stem.conv.weight"], ours["stem.conv.weight"])


def test_as_a_recipe_it_starts_as_the_plain_student_too(weights: str) -> None:
    kwargs = {
        "student": {"name": "cifar_resnet8"},
        "teacher": {"name": "cifar_resnet8x4", "weights": weights},
        "factor": 4,
    }
    pl.seed_everything(2)
    net = Network("kd_lightning.models.SimKDStudent", kwargs=kwargs).build(5)
    assert isinstance(net, SimKDStudent)
    assert net.projector[0].out_channels == 64
    plain = Network("cifar_resnet8").build(5).state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in net.backbone.state_dict().items())


def test_projector_and_classifier_are_exported(weights: str, tmp_path: Path) -> None:
    net = student(weights).eval()
    save_weights(net, tmp_path / "student.safetensors")
    kept = read_weights(tmp_path / "student.safetensors")
    assert kept.keys() == net.state_dict().keys()
    assert {name.split(".")[0] for name in kept} == {"backbone", "projector", "classifier"}
    torch.manual_seed(99)
    twin = student(weights).eval()
    with torch.no_grad():
        twin.classifier.weight.zero_()
    assert not torch.allclose(twin(IMAGE), net(IMAGE))
    load_weights(twin, tmp_path / "student.safetensors")
    assert torch.equal(twin(IMAGE), net(IMAGE))


def test_taps_of_the_two_fit_a_hint_without_adapter(weights: str) -> None:
    net, teacher = student(weights).eval(), teacher_of(weights)
    ours = plan(net, ["projector", "embedding", "last_map"], (3, 16, 16))
    theirs = plan(teacher, ["last_map"], (3, 16, 16))
    assert ours.names == {"projector": "projector", "embedding": "classifier:in", "last_map": "projector"}
    assert ours.shapes["projector"] == theirs.shapes["last_map"] == (2, 256, 4, 4)
    assert classifier_of(net, (3, 16, 16)) is net.classifier
    loss = Hint(adapter="none")
    loss.build([ours.shapes["projector"]], [theirs.shapes["last_map"]])
    assert not list(loss.parameters())
    with tapped(net, ours.submodules()) as mine:
        net(IMAGE)
    with tapped(teacher, theirs.submodules()) as its:
        teacher(IMAGE)
    value = loss(mine["projector"], theirs.picked(its)["last_map"], torch.zeros(4))
    expected = (net.forward_features(IMAGE) - teacher.forward_features(IMAGE)).square().mean()
    torch.testing.assert_close(value, expected)


def test_a_transformer_is_a_student_too(weights: str) -> None:
    recipe = {"name": "vit_tiny_patch16_224", "kwargs": {"img_size": 16, "patch_size": 4, "depth": 1}}
    net = student(weights, student=recipe).eval()
    tokens = net.backbone.forward_features(IMAGE)
    assert tokens.shape == (4, 17, 192)
    patches = tokens[:, 1:].mT.reshape(4, 192, 4, 4)  # the class token is dropped
    torch.testing.assert_close(net(IMAGE), net.classifier(net.projector(patches).mean((2, 3))))


def test_recipes_may_be_networks(weights: str) -> None:
    net = SimKDStudent(Network("cifar_resnet8"), Network("cifar_resnet8x4", weights=weights), num_classes=5)
    assert net(IMAGE).shape == (4, 5)


def test_a_teacher_without_weights_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"teacher cifar_resnet8x4 has no weights: its classifier would be noise"):
        SimKDStudent({"name": "cifar_resnet8"}, {"name": "cifar_resnet8x4"}, num_classes=5)


def test_a_teacher_of_other_classes_is_an_error(weights: str) -> None:
    with pytest.raises(ValueError, match="has 5 classes, the network 6"):
        student(weights, num_classes=6)


@pytest.mark.parametrize("factor", [0, -2])
def test_a_factor_below_1_is_an_error(weights: str, factor: int) -> None:
    with pytest.raises(ValueError, match=f"factor must be >= 1, got {factor}"):
        student(weights, factor=factor)


def test_a_student_without_timms_interface_is_an_error(weights: str) -> None:
    allow([__name__.partition(".")[0]])
    with pytest.raises(ValueError, match=rf"student {__name__}.NoInterface must have forward_features, num_features"):
        student(weights, student={"name": f"{__name__}.NoInterface"})


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (NoInterface, "teacher .*NoInterface must have forward_features, num_features and get_classifier"),
        (WideHead, "the teacher's classifier must be a linear layer, got Sequential"),
    ],
)
def test_a_teacher_whose_classifier_cannot_be_borrowed_is_an_error(
    network: type[nn.Module], message: str, tmp_path: Path
) -> None:
    allow([__name__.partition(".")[0]])
    save_weights(network(5), tmp_path / "w.safetensors")
    recipe = {"name": f"{__name__}.{network.__name__}", "weights": str(tmp_path / "w.safetensors")}
    with pytest.raises(ValueError, match=message):
        SimKDStudent({"name": "cifar_resnet8"}, recipe, num_classes=5)
