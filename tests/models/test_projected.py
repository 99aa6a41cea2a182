from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.models import Network, ProjectedStudent
from kd_lightning.models.tap_plan import plan
from kd_lightning.models.taps import tapped

IMAGES = torch.randn(4, 3, 16, 16)


def student(**given: Any) -> ProjectedStudent:
    return ProjectedStudent({"name": "cifar_resnet8"}, **({"outputs": 12, "hidden": 8, "num_classes": 5} | given))


def test_it_answers_as_the_network_and_is_tapped_at_the_projection() -> None:
    network = student().eval()
    names = plan(network, ["projection", "embedding"], (3, 16, 16))
    assert names.shapes == {"projection": (2, 12), "embedding": (2, 64), "logits": (2, 5)}
    with tapped(network, names.submodules()) as taps:
        logits = network(IMAGES)
    torch.testing.assert_close(logits, network.backbone(IMAGES))
    projection = taps["projection"]
    assert projection.abs().max() <= 1 + 1e-5


@pytest.mark.parametrize("probe", [True, False])
def test_a_probe_does_not_change_what_it_looks_at(probe: bool) -> None:
    network = student(probe=probe)
    network(IMAGES).sum().backward()
    assert network.get_classifier().weight.grad is not None
    reached = [parameter.grad is not None for name, parameter in network.named_parameters() if "fc" not in name]
    assert any(reached) is not probe


def test_it_is_built_from_a_recipe_for_the_data() -> None:
    recipe = Network(
        "kd_lightning.models.ProjectedStudent", kwargs={"network": {"name": "cifar_vgg8"}, "outputs": 7, "hidden": 4}
    )
    built = recipe.build(5, 1)
    assert isinstance(built, ProjectedStudent)
    assert built(torch.randn(2, 1, 16, 16)).shape == (2, 5)


def test_timm_networks_serve_too() -> None:
    network = ProjectedStudent({"name": "resnet10t"}, outputs=6, hidden=4, num_classes=5).eval()
    torch.testing.assert_close(network(torch.ones(1, 3, 32, 32)), network.backbone(torch.ones(1, 3, 32, 32)))


@pytest.mark.parametrize(
    "recipe",
    [
        {"name": "cifar_resnet8"},
        {
            "name": "vit_tiny_patch16_224",
            "kwargs": {"img_size": 32, "patch_size": 4, "depth": 1, "dynamic_img_size": True},
        },
    ],
    ids=lambda recipe: recipe["name"],
)
def test_it_looks_at_smaller_crops_too(recipe: dict[str, Any]) -> None:
    network = ProjectedStudent(recipe, outputs=6, hidden=4, num_classes=5)
    names = plan(network, ["projection", "embedding"], (3, 32, 32))
    for side in (32, 20, 16):
        with tapped(network, names.submodules()) as taps:
            network(torch.randn(4, 3, side, side))
        shapes = {name: tuple(value.shape) for name, value in names.picked(taps).items() if isinstance(value, Tensor)}
        assert shapes == {"projection": (4, 6), "embedding": (4, network.num_features)}


class Bare(nn.Module):
    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.fc = nn.Linear(2, num_classes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": 1}, "outputs must be >= 2, got 1"),
        ({"hidden": 0}, "hidden must be >= 1, got 0"),
    ],
)
def test_faults(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        student(**options)


def test_a_network_without_timms_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Network, "build", lambda self, *_: Bare())
    with pytest.raises(
        ValueError, match="network cifar_resnet8 must have forward_features and forward_head, as timm's"
    ):
        student()
