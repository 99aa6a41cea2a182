import copy
import math
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from kd_lightning.models.two_heads import INFERENCES, Inference, combined, prepare_heads, two_heads

CLASSES = 7
NETWORKS: dict[str, tuple[dict[str, Any], int]] = {
    "deit_tiny_distilled_patch16_224": ({"img_size": 32, "patch_size": 8, "depth": 2, "drop_path_rate": 0.3}, 32),
    "pit_ti_distilled_224": ({"img_size": 64}, 64),
    "levit_128s": ({"drop_path_rate": 0.3}, 224),
    "efficientformer_l1": ({}, 224),
    "efficientformerv2_s0": ({}, 224),
    "repvit_m0_9": ({}, 64),
    "swiftformer_xs": ({}, 64),
}
LN3 = math.log(3)


def made(name: str) -> tuple[nn.Module, Tensor]:
    kwargs, side = NETWORKS[name]
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=CLASSES, **kwargs)
    prepare_heads(network, (3, side, side))
    return network, torch.randn(2, 3, side, side)


def test_there_are_as_many_answers_in_eval_mode_whatever_the_network() -> None:
    for name in NETWORKS:
        network, image = made(name)
        network.eval()
        state = {key: value.clone() for key, value in network.state_dict().items()}
        with torch.no_grad():
            one, other = two_heads(network, image)
            fused = network(image)
        assert one.shape == other.shape == (2, CLASSES), name
        assert not torch.equal(one, other), name
        # As if nothing were trained: no drop path, no dropout, and no statistics of this batch.
        torch.testing.assert_close((one + other) / 2, fused, msg=name)
        assert all(torch.equal(state[key], value) for key, value in network.state_dict().items()), name
        assert not any(module.training for module in network.modules()), name


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "repvit_m0_9"])
def test_train_mode_gives_the_very_pair_of_the_network(name: str) -> None:
    network, image = made(name)
    network.train()
    torch.manual_seed(1)
    pair = two_heads(network, image)
    torch.manual_seed(1)
    expected = network(image)
    assert all(torch.equal(one, other) for one, other in zip(pair, expected, strict=True))
    assert all(module.training for module in network.modules())


def test_only_its_head_reaches_an_answer() -> None:
    network, image = made("deit_tiny_distilled_patch16_224")
    for answer, head, other in [(0, "head", "head_dist"), (1, "head_dist", "head")]:
        network.zero_grad()
        two_heads(network.train(), image)[answer].square().sum().backward()  # type: ignore[no-untyped-call]
        assert network.get_parameter(f"{head}.weight").grad is not None
        assert network.get_parameter(f"{other}.weight").grad is None


def test_a_copy_returns_the_pair_too() -> None:
    network, image = made("deit_tiny_distilled_patch16_224")
    with torch.no_grad():
        pair, other = two_heads(network.eval(), image), two_heads(copy.deepcopy(network), image)
    assert torch.equal(pair[0], other[0])
    assert torch.equal(pair[1], other[1])


def test_the_modes_come_back_after_a_fault() -> None:
    network, _ = made("deit_tiny_distilled_patch16_224")
    network.eval()
    with pytest.raises(AssertionError):
        two_heads(network, torch.zeros(2, 3, 30, 30))
    assert not network.training


@pytest.mark.parametrize("name", ["deit3_small_patch16_224", "resnet18", "deit_tiny_patch16_224"])
def test_a_network_without_a_distillation_head_is_named(name: str) -> None:
    network = timm.create_model(name)
    with pytest.raises(ValueError, match=rf"student {type(network).__name__} has no distillation head.*deit_tiny_dist"):
        prepare_heads(network, (3, 224, 224))


def test_a_network_that_was_built_with_one_head_is_named() -> None:
    network = timm.create_model("pit_ti_224", img_size=64)
    with pytest.raises(ValueError, match="PoolingVisionTransformer returns a Tensor .* build its variant with"):
        prepare_heads(network, (3, 64, 64))


@pytest.mark.parametrize(
    ("inference", "probabilities"),
    [
        ("softmax", [0.625, 0.375]),  # the mean of (3/4, 1/4) and (1/2, 1/2)
        ("logits", [3**0.5 / (3**0.5 + 1), 1 / (3**0.5 + 1)]),
        ("class", [0.75, 0.25]),
        ("distillation", [0.5, 0.5]),
    ],
)
def test_combined_by_hand(inference: Inference, probabilities: list[float]) -> None:
    answer = combined(torch.tensor([[LN3 + 5, 5.0]]), torch.tensor([[1.0, 1.0]]), inference)
    torch.testing.assert_close(answer.softmax(dim=1), torch.tensor([probabilities]))


def test_the_means_may_decide_differently() -> None:
    # Softmaxes (0.99995, 0.00005, 0) and (0, 0.5, 0.5); logits (5, 0, -50) and (-50, 0, 0).
    heads = torch.tensor([[10.0, 0.0, -100.0]]), torch.tensor([[-100.0, 0.0, 0.0]])
    assert combined(*heads, "softmax").argmax().item() == 0
    assert combined(*heads, "logits").argmax().item() == 1


@pytest.mark.parametrize("inference", INFERENCES)
def test_swapping_the_heads_matters_for_one_of_them_alone(inference: Inference) -> None:
    one, other = torch.randn(2, 4, 5)
    same = torch.allclose(combined(one, other, inference), combined(other, one, inference))
    assert same == (inference in ("softmax", "logits"))


def test_the_mean_of_softmaxes_is_finite_in_half_precision() -> None:
    heads = torch.tensor([[200.0, -200.0]]).half(), torch.tensor([[-200.0, 200.0]]).half()
    answer = combined(*heads, "softmax")
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer.softmax(dim=1), torch.tensor([[0.5, 0.5]]))
