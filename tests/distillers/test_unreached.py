import torch
from torch import Tensor, nn

from kd_lightning.distillers.unreached import Unreached, reached


class Two(nn.Module):
    """A body, and a head that a loss may leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(2, 2), nn.Linear(2, 3)
        self.fixed = nn.Linear(2, 2).requires_grad_(False)

    def features(self) -> Tensor:
        out: Tensor = self.fixed(self.body(torch.ones(1, 2)))
        return out

    def logits(self) -> Tensor:
        out: Tensor = self.head(self.features())
        return out


def test_reached_follows_the_graph_to_its_leaves() -> None:
    net = Two()
    assert reached(net.features().sum()) == set(net.body.parameters())
    assert reached(net.logits().sum()) == {*net.body.parameters(), *net.head.parameters()}
    assert reached(torch.tensor(1.0)) == set()


def test_reached_follows_a_leaf_that_is_the_loss_through_one_node() -> None:
    leaf = torch.ones((), requires_grad=True)
    assert reached(leaf * 1) == {leaf}


def test_reached_ends_on_graphs_with_many_paths() -> None:
    leaf = torch.ones((), requires_grad=True)
    value = leaf * 1.0
    for _ in range(60):  # 2^60 paths
        value = value + value * 0.5
    assert reached(value) == {leaf}


def test_on_one_rank_the_loss_stays_as_it_is() -> None:
    net, unreached = Two(), Unreached()
    loss = net.features().sum()
    assert unreached.tied(loss, 0, net.parameters(), ranks=1) is loss


def test_on_several_ranks_every_trained_parameter_is_reached_and_the_value_kept() -> None:
    net, unreached = Two(), Unreached()
    loss = net.features().sum()
    tied = unreached.tied(loss, 0, net.parameters(), ranks=2)
    assert torch.equal(tied, loss)
    assert reached(tied) == {*net.body.parameters(), *net.head.parameters()}
    tied.backward()
    gradients = [p.grad for p in net.head.parameters()]
    assert all(g is not None and not g.any() for g in gradients)
    expected = torch.autograd.grad(net.features().sum(), [*net.body.parameters()])
    for parameter, gradient in zip(net.body.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_release_takes_away_the_zero_gradients_and_no_others() -> None:
    net, unreached = Two(), Unreached()
    unreached.tied(net.features().sum(), 0, net.parameters(), ranks=2).backward()
    unreached.release()
    assert all(p.grad is None for p in net.head.parameters())
    assert all(p.grad is not None for p in net.body.parameters())


def test_what_is_released_is_left_alone_by_decay_and_momentum() -> None:
    for ranks in (1, 2):
        net, unreached = Two(), Unreached()
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1, 0.9, weight_decay=0.1)
        net.logits().sum().backward()
        optimizer.step()  # the head has momentum now
        optimizer.zero_grad(set_to_none=False)  # and gradients of 0, which would decay it
        head, body = net.head.weight.clone(), net.body.weight.clone()
        unreached.tied(net.features().sum(), 0, net.parameters(), ranks).backward()
        unreached.release()
        optimizer.step()
        assert torch.equal(net.head.weight, head)
        assert not torch.equal(net.body.weight, body)


def test_another_key_is_another_look_and_the_same_key_is_none() -> None:
    net, unreached = Two(), Unreached()
    unreached.tied(net.features().sum(), (0, ("hint",)), net.parameters(), ranks=1)
    unreached.tied(net.logits().sum(), (1, ("ce",)), net.parameters(), ranks=1).backward()
    unreached.release()
    assert all(p.grad is not None for p in net.head.parameters())
    net.zero_grad()
    # As long as the key stays the same, the walk is not repeated: what it says then holds.
    unreached.tied(net.features().sum(), (1, ("ce",)), net.parameters(), ranks=1).backward()
    net.head.weight.grad = torch.zeros_like(net.head.weight)
    unreached.release()
    assert net.head.weight.grad is not None


def test_what_is_not_trained_is_not_tied() -> None:
    net, unreached = Two(), Unreached()
    tied = unreached.tied(net.features().sum(), 0, net.parameters(), ranks=2)
    assert not reached(tied) & set(net.fixed.parameters())
