import pytest
import timm
import torch
from torch import Tensor, nn

from kd_lightning.models import TapPlan
from kd_lightning.models.tap_plan import classifier_of, picked, plan, several
from kd_lightning.models.taps import tapped


def network() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("cifar_resnet8", num_classes=5).eval()


IMAGE = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)


def test_a_plan_holds_symbols_and_names_of_submodules() -> None:
    found = plan(network(), ["stages", "stem.conv", "fc:in", "embedding"], (3, 16, 16))
    assert found == TapPlan(
        names={
            "stages": ["stages.0", "stages.1", "stages.2"],
            "stem.conv": "stem.conv",
            "fc:in": "fc:in",
            "embedding": "fc:in",
        },
        shapes={
            "stages": [(2, 16, 16, 16), (2, 32, 8, 8), (2, 64, 4, 4)],
            "stem.conv": (2, 16, 16, 16),
            "fc:in": (2, 64),
            "embedding": (2, 64),
            "logits": (2, 5),
        },
    )


def test_each_submodule_is_listened_to_once() -> None:
    found = plan(network(), ["stages", "stage:2", "last_stage", "embedding", "fc:in"], (3, 16, 16))
    assert found.submodules() == ["fc:in", "stages.0", "stages.1", "stages.2"]


def test_values_come_back_under_the_taps_that_were_asked_for() -> None:
    net = network()
    found = plan(net, ["stages", "stage:2", "embedding"], (3, 16, 16))
    with tapped(net, found.submodules()) as taps:
        net(IMAGE)
    values = found.picked(taps)
    maps = [net.stem(IMAGE)]
    for stage in net.stages:
        maps.append(stage(maps[-1]))
    assert set(values) == {"stages", "stage:2", "embedding"}
    assert isinstance(values["stages"], list)
    assert all(torch.equal(one, other) for one, other in zip(values["stages"], maps[1:], strict=True))
    assert isinstance(values["stage:2"], Tensor)
    assert torch.equal(values["stage:2"], maps[2])
    torch.testing.assert_close(values["embedding"], maps[3].mean((2, 3)))


def test_logits_are_measured_whether_or_not_they_are_asked_for() -> None:
    for taps in ([], ["logits"]):
        assert plan(network(), taps, (3, 16, 16)) == TapPlan({}, {"logits": (2, 5)})


def test_names_of_submodules_need_no_anatomy() -> None:
    class Odd(nn.Module):
        """No linear layer, no map: no symbol has a meaning."""

        def __init__(self) -> None:
            super().__init__()
            self.flat = nn.Flatten()

        def forward(self, x: Tensor) -> Tensor:
            flat: Tensor = self.flat(x)
            return flat

    assert plan(Odd(), ["flat"], (3, 2, 2)).shapes == {"flat": (2, 12), "logits": (2, 12)}
    with pytest.raises(ValueError, match="the classifier of Odd is not known"):
        plan(Odd(), ["flat", "embedding"], (3, 2, 2))


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"tap 'stages\.7': CifarResNet has no such submodule"):
        plan(network(), ["stages", "stages.7"], (3, 16, 16))


def test_one_or_several() -> None:
    assert several(3) == [3]
    assert several([3, 4]) == [3, 4]
    assert several((2, 3)) == [(2, 3)]  # one shape
    assert picked({"one": "a", "two": ["b", "a"]}, {"a": 1, "b": 2}) == {"one": 1, "two": [2, 1]}


@pytest.mark.parametrize("name", ["cifar_resnet8", "resnet18", "convnext_atto"])
def test_the_classifier_makes_logits_of_embeddings(name: str) -> None:
    net = timm.create_model(name, num_classes=5).eval()
    image = torch.randn(2, 3, 32, 32)
    head, found = classifier_of(net, (3, 32, 32)), plan(net, ["embedding"], (3, 32, 32))
    assert isinstance(head, nn.Linear)
    with tapped(net, found.submodules()) as taps:
        logits = net(image)
    torch.testing.assert_close(head(found.picked(taps)["embedding"]), logits)


def test_an_unknown_classifier_is_an_error() -> None:
    with pytest.raises(ValueError, match="the classifier of Sequential is not known"):
        classifier_of(nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh()), (3, 2, 2))
