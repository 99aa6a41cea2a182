import pytest
import torch
from torch import Tensor, nn

from kd_lightning.models import BranchedNetwork, Network
from kd_lightning.models.branched import HasBranches, cut
from kd_lightning.models.peer_weights import plain_weights

RESNET8 = {"name": "cifar_resnet8", "kwargs": {"widths": [2, 2, 4, 8]}}


class Around(nn.Module):
    """A connection leads around the second layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        logits: Tensor = self.head((x + self.second(x)).mean(dim=(2, 3)))
        return logits


def branched(**options: int) -> BranchedNetwork:
    return BranchedNetwork(RESNET8, "stages.2", num_classes=10, **options)


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("cifar_resnet8", "stages.2"),
        ("cifar_resnet20", "stages.1.1"),
        ("cifar_wrn_16_2", "stages.2"),
        ("cifar_vgg8", "stages.3"),
        ("cifar_mobilenetv2", "stages.3"),
        ("cifar_shufflenetv2", "stages.2"),
        ("resnet18", "layer4"),
    ],
)
def test_trunk_and_a_branch_are_the_plain_network(name: str, at: str) -> None:
    network = BranchedNetwork({"name": name}, at, branches=2, num_classes=10).eval()
    image = torch.randn(3, 3, 32, 32)
    for branch in (1, 2):
        plain = Network(name).build(10)
        plain.load_state_dict(network.plain_weights(branch))
        network.only = branch
        torch.testing.assert_close(network(image), plain.eval()(image), rtol=1e-4, atol=1e-5)


def test_first_branch_starts_as_the_plain_network_and_the_others_otherwise() -> None:
    network, plain = branched(), Network(**RESNET8).build(10)
    first, second, third = (network.plain_weights(branch) for branch in (1, 2, 3))
    assert all(torch.equal(first[key], value) for key, value in plain.state_dict().items())
    assert first.keys() == second.keys() == plain.state_dict().keys()
    assert torch.equal(first["stem.conv.weight"], second["stem.conv.weight"])
    for one, other in ((first, second), (second, third)):
        assert not torch.equal(one["stages.2.0.conv1.weight"], other["stages.2.0.conv1.weight"])
        assert not torch.equal(one["fc.weight"], other["fc.weight"])


def test_shared_layers_are_there_once() -> None:
    plain = Network(**RESNET8).build(10)
    tail = sum(
        p.numel() for part in (plain.get_submodule("stages.2"), plain.get_submodule("fc")) for p in part.parameters()
    )
    gate = 4 * 3 + 3 + 2 * 3
    assert (
        sum(p.numel() for p in branched().parameters()) == sum(p.numel() for p in plain.parameters()) + 2 * tail + gate
    )


def test_answer_is_the_sum_of_the_branches_by_the_gate() -> None:
    network = branched().eval()
    image = torch.randn(5, 3, 32, 32)
    shared = network.trunk(image)
    weights = network.gate(shared.mean(dim=(2, 3)))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(5))
    expected = sum(weights[:, k, None] * branch(shared) for k, branch in enumerate(network.branches))
    torch.testing.assert_close(network(image), expected)
    assert isinstance(network, HasBranches)
    assert network.branch_taps() == ["branches.0", "branches.1", "branches.2"]


def test_trunk_runs_once_and_learns_from_every_branch() -> None:
    network, runs = branched(), []
    network.trunk.register_forward_hook(lambda *_: runs.append(1))
    network(torch.randn(4, 3, 32, 32)).sum().backward()
    assert len(runs) == 1
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_cut_names_the_largest_parts() -> None:
    network = Network(**RESNET8).build(10)
    before, after = cut(network, "stages.1", (3, 32, 32))
    assert before == ["stem", "stages.0"]
    assert after == ["stages.1", "stages.2", "neck", "global_pool", "head_drop", "fc"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"branches": 1}, "branches must be >= 2, got 1"),
        ({"only": 4}, "only must be in 1 … 3, got 4"),
        ({"at": "stages.7"}, "at must be a submodule of CifarResNet that runs once, got 'stages.7'"),
        ({"at": "stem"}, "nothing of CifarResNet runs before 'stem'"),
        ({"at": "stages.2.0.conv2"}, "CifarResNet cannot be cut at 'stages.2.0.conv2'"),
        ({"network": Around(), "at": "second"}, "Around cannot be cut at 'second'"),
    ],
)
def test_faults_are_named(options: dict[str, object], message: str) -> None:
    stated = {"network": RESNET8, "at": "stages.2", "num_classes": 10} | options
    with pytest.raises(ValueError, match=message):
        BranchedNetwork(**stated)  # type: ignore[arg-type]


def test_a_branch_that_is_not_there_is_an_error() -> None:
    for branch in (0, 4):
        with pytest.raises(ValueError, match=rf"there is no branch {branch}: there are \[1, 2, 3\]"):
            plain_weights(branched().state_dict(), branch)
