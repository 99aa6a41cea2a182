import pytest
import torch
from torch import Tensor, nn

from kd_lightning.models import Network
from kd_lightning.models.stopped import Skipped, later, stopped
from kd_lightning.models.taps import install, tapped
from kd_lightning.models.trace import traced

RESNET8 = Network("cifar_resnet8", {"widths": [2, 2, 4, 8]})
SHAPE = (3, 32, 32)


class Guided(nn.Module):
    """Its second layer takes more than the features, and is found within a container that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Bilinear(4, 4, 5)])

    def forward(self, x: Tensor) -> Tensor:
        mean = self.parts[0](x).mean(dim=(2, 3))
        answer: Tensor = self.parts[1](mean, mean)
        return answer


def test_what_runs_later_in_its_largest_parts() -> None:
    runs, _ = traced(RESNET8.build(10), SHAPE)
    assert later(runs, "stages.0") == ["stages.1", "stages.2", "neck", "global_pool", "head_drop", "fc"]
    within = ["stages.1.0.bn1", "stages.1.0.act1", "stages.1.0.conv2", "stages.1.0.bn2", "stages.1.0.shortcut"]
    assert later(runs, "stages.1.0.conv1")[:6] == [*within, "stages.1.0.act2"]
    assert later(runs, "fc") == []


def test_the_tap_is_as_it_was_and_the_rest_is_gone() -> None:
    network, image = RESNET8.build(10).eval(), torch.randn(2, *SHAPE)
    install(network, ["stages.0"])
    with torch.no_grad(), tapped(network, ["stages.0"]) as whole:
        network(image)
    assert stopped(network, traced(network, SHAPE)[0], "stages.0", SHAPE) is network
    assert {key.partition(".")[0] for key in network.state_dict()} == {"stem", "stages"}
    assert not any(key.startswith(("stages.1", "stages.2")) for key in network.state_dict())
    with torch.no_grad(), tapped(network, ["stages.0"]) as short:
        network(image)
    assert torch.equal(whole["stages.0"], short["stages.0"])


def test_a_layer_of_several_inputs_is_skipped_too() -> None:
    network = Guided()
    install(network, ["parts.0"])
    stopped(network, traced(network, SHAPE)[0], "parts.0:map", SHAPE)
    assert [type(part) for part in network.parts] == [nn.Conv2d, Skipped]


def test_a_network_that_does_not_run_without_the_rest_is_an_error() -> None:
    class Stiff(Guided):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).view(len(x), 5)

    network = Stiff()
    install(network, ["parts.0"])
    with pytest.raises(ValueError, match="only: Stiff does not run without what follows 'parts.0'"):
        stopped(network, traced(network, SHAPE)[0], "parts.0", SHAPE)
