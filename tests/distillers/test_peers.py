import pytest
import torch
from torch import nn

from kd_lightning.batch import Batch
from kd_lightning.callbacks.ema import StudentEMA
from kd_lightning.distillers.collaboration import Learner
from kd_lightning.distillers.peer_evaluation import PeerEvaluations, pairwise_agreement
from kd_lightning.distillers.peers import Peer, Peers, answers_of, build_peer, shown_to, top1_of, untrained
from kd_lightning.models import BranchedNetwork, Network, Views
from kd_lightning.models.tap_plan import plan

RECIPE = Network("cifar_resnet8", {"widths": [2, 2, 4, 8]})
VIEWS = Views((3, 32, 32), (0.5,) * 3, (0.25,) * 3)


def branched() -> BranchedNetwork:
    return BranchedNetwork(RECIPE, "stages.2", branches=2, num_classes=10)


def flat(classes: int = 10) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, classes))


def test_equal_recipes_start_apart_by_name_and_the_same_again() -> None:
    a, again, b = (build_peer(name, Peer(RECIPE), 10, VIEWS).get_parameter("fc.weight") for name in "aab")
    assert torch.equal(a, again)
    assert not torch.equal(a, b)


def test_a_peer_of_another_normalisation_is_an_error() -> None:
    own = Network("cifar_resnet8", mean=(0.1,) * 3, std=(0.2,) * 3)
    with pytest.raises(ValueError, match="peers.a: normalised by"):
        build_peer("a", Peer(own), 10, VIEWS)


def test_answer_is_the_mean_of_the_logits() -> None:
    peers = Peers({"a": flat(), "b": flat()})
    image = torch.randn(5, 3, 2, 2)
    torch.testing.assert_close(peers(image), (peers.networks["a"](image) + peers.networks["b"](image)) / 2)
    assert [learner.name for learner in peers.learners()] == ["a", "b"]
    assert all(key.startswith(("networks.a.", "networks.b.")) for key in peers.state_dict())


def test_branches_are_learners_with_answers_of_their_own() -> None:
    peers = Peers({"one": branched(), "b": RECIPE.build(10)}).eval()
    assert peers.learners() == [
        Learner("one", "one"),
        Learner("one_1", "one", "branches.0"),
        Learner("one_2", "one", "branches.1"),
        Learner("b", "b"),
    ]
    image = torch.randn(3, 3, 32, 32)
    for network in peers.networks.values():
        plan(network, network.branch_taps() if isinstance(network, BranchedNetwork) else [], (3, 32, 32))
    found = peers.answers(image)
    one = peers.networks["one"]
    assert isinstance(one, BranchedNetwork)
    torch.testing.assert_close(found["one"], one(image))
    torch.testing.assert_close(found["one_2"], one.branches[1](one.trunk(image)))


def test_each_peer_sees_its_own_view_and_answers_an_image_once() -> None:
    peers = {"a": Peer(flat()), "b": Peer(flat(), view="second")}
    images = {"default": torch.randn(4, 3, 2, 2), "second": torch.randn(4, 3, 2, 2)}
    networks = Peers({name: peer.network for name, peer in peers.items() if isinstance(peer.network, nn.Module)})
    runs: list[torch.Tensor] = []
    networks.networks["b"].register_forward_pre_hook(lambda _, given: runs.append(given[0]))
    plans = {name: plan(network, [], (3, 2, 2)) for name, network in networks.networks.items()}
    runs.clear()
    shown = shown_to(peers, Batch(images, torch.zeros(4, dtype=torch.int64)), torch.contiguous_format)
    found = answers_of(networks, plans, networks.learners(), {"default", "second"}, shown)
    assert [torch.equal(run, images["second"]) for run in runs] == [True]
    assert found["default"]["b"] is found["second"]["b"]
    torch.testing.assert_close(found["default"]["a"].logits, networks.networks["a"](images["default"]))
    torch.testing.assert_close(found["second"]["a"].logits, networks.networks["a"](images["second"]))
    peers["a"].view = "third"
    with pytest.raises(ValueError, match=r"peer a looks at the view 'third', the batch has \['default', 'second'\]"):
        shown("a", "default")


def test_untrained_head_passes_the_gradient_to_its_input_only() -> None:
    head, x = nn.Linear(3, 2), torch.randn(4, 3, requires_grad=True)
    torch.testing.assert_close(untrained(head)(x), head(x))
    untrained(head)(x).sum().backward()
    assert x.grad is not None
    assert head.weight.grad is None


def test_agreement_by_hand() -> None:
    one, two, three = (torch.eye(3)[list(decided)] for decided in ([0, 1, 2], [0, 1, 0], [0, 2, 1]))
    assert pairwise_agreement([one, two, three]).tolist() == pytest.approx([1.0, 1 / 3, 0.0])
    metrics = PeerEvaluations(["a", "b"], ["a", "b"], 3, full=False)
    for _ in range(2):  # a fresh start after each
        metrics.update(one, {"a": one, "b": two}, torch.tensor([0, 1, 1]))
        metrics.update(one[:1], {"a": one[:1], "b": three[:1]}, torch.tensor([0]))
        figures = metrics.compute()
        assert figures["agreement"] == pytest.approx(3 / 4)
        assert (figures["top1"], figures["a_top1"], figures["b_top1"]) == pytest.approx((3 / 4, 3 / 4, 3 / 4))
    alone = PeerEvaluations(["a"], ["a"], 3, full=False)
    alone.update(one, {"a": one}, torch.tensor([0, 1, 1]))
    assert "agreement" not in alone.compute()


def test_last_figures_of_those_who_have_one() -> None:
    figures = {"val/a_top1": torch.tensor(0.5), "val/top1": torch.tensor(0.9)}
    assert top1_of(figures, ["a", "b"]) == {"a": 0.5}


def test_an_average_holds_all_peers() -> None:
    class Module(nn.Module):
        student = Peers({"a": flat(), "b": flat()})

    average = StudentEMA(0.5)._build(Module())  # type: ignore[arg-type]
    assert average.module.state_dict().keys() == Module.student.state_dict().keys()


def test_branched_peers_of_one_recipe_start_apart() -> None:
    kwargs = {"network": {"name": "cifar_resnet8"}, "at": "stages.2", "branches": 2}
    recipe = Network("kd_lightning.models.BranchedNetwork", kwargs=kwargs)
    views = Views((3, 32, 32))
    a, b = (build_peer(name, Peer(recipe), 5, views) for name in "ab")
    again = build_peer("a", Peer(recipe), 5, views)
    for (name, one), other, same in zip(a.named_parameters(), b.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, same)
        if one.ndim > 1:
            assert not torch.equal(one, other), name
