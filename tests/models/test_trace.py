import copy

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.models.trace import traced


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(2, 3)
        self.twice = nn.Identity()
        self.unused = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = self.twice(self.twice(self.body(x))).mean((2, 3))
        logits: Tensor = self.head(self.drop(features))
        return logits


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.split = Split()

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.split(x, scale=2.0)
        total: Tensor = left + right
        return total


class Split(nn.Module):
    def forward(self, x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return x, scale * x


class Fails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.linear(torch.zeros(1, 2))
        raise RuntimeError("no such thing")


def test_runs_in_the_order_in_which_they_finish() -> None:
    runs, _ = traced(Net(), (1, 5, 5))
    assert [run.name for run in runs] == ["body.0", "body.1", "body.2", "body", "drop", "head"]


def test_what_runs_twice_or_not_at_all_is_left_out() -> None:
    names = {run.name for run in traced(Net(), (1, 5, 5))[0]}
    assert "twice" not in names
    assert "unused" not in names


def test_inputs_and_outputs_belong_together() -> None:
    net = Net()
    runs, returned = traced(net, (1, 5, 5))
    run = {run.name: run for run in runs}
    assert isinstance(returned, Tensor)
    assert run["head"].left is returned
    assert run["head"].module is net.head
    assert run["body.1"].entered is run["body.0"].left
    assert run["body"].left is run["body.2"].left  # one tensor, by which an activation at the end is found
    assert run["body"].entered is run["body.0"].entered
    assert run["drop"].left is not None  # the network is in eval mode: dropout changes nothing
    assert run["drop"].entered is not None
    assert torch.equal(run["drop"].left, run["drop"].entered)
    with torch.no_grad():
        assert torch.equal(net.eval()(run["body"].entered), returned)


def test_an_activation_in_place_overwrites_nothing() -> None:
    net = Net()
    run = {run.name: run for run in traced(net, (1, 5, 5))[0]}
    before, after = run["body.2"].entered, run["body.2"].left
    assert before is not None
    assert after is not None
    assert (before < 0).any()
    assert torch.equal(before.relu(), after)
    assert not net.body[2].inplace


def test_the_images_are_noise_that_is_always_the_same() -> None:
    first, second = (traced(Net(), (1, 5, 5))[0][0].entered for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.shape == (2, 1, 5, 5)
    assert torch.equal(first, second)
    assert first.std() > 0.5
    assert not torch.equal(first[0], first[1])


def test_the_images_follow_the_precision_of_the_network() -> None:
    entered = traced(Net().double(), (1, 5, 5))[0][0].entered
    assert entered is not None
    assert entered.dtype == torch.float64


def test_what_is_no_tensor_is_noted_as_nothing() -> None:
    (run,), returned = traced(Pair(), (2,))
    assert run.name == "split"
    assert run.entered is not None
    assert run.left is None
    assert isinstance(returned, Tensor)
    torch.testing.assert_close(returned, 3 * run.entered)


def test_the_network_is_left_as_it_was() -> None:
    net = Net()
    net.drop.eval()
    state, modes = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    generator = torch.get_rng_state()
    traced(net, (1, 5, 5))
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(module._forward_hooks for module in net.modules())


def test_hooks_and_modes_are_given_back_when_the_forward_fails() -> None:
    net = Fails()
    with pytest.raises(RuntimeError, match="no such thing"):
        traced(net, (2,))
    assert net.training
    assert not net.linear._forward_hooks


def test_nothing_keeps_a_graph() -> None:
    runs, returned = traced(Net(), (1, 5, 5))
    assert isinstance(returned, Tensor)
    assert not returned.requires_grad
    assert not any(run.left.requires_grad for run in runs if run.left is not None)
