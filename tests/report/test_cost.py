"""What a network costs, counted by hand."""

import timm
import torch
from torch import nn

from kd_lightning.report.cost import cost


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, kernel_size=3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4 * 5, 7)
    )


def test_parameters_and_multiply_adds_by_hand() -> None:
    counted = cost(network(), (2, 4, 5))
    assert counted.params == (2 * 3 * 9 + 3) + (3 + 3) + (60 * 7 + 7)
    assert counted.macs == 2 * 3 * 9 * 4 * 5 + 60 * 7  # of convolutions and matrix products; biases add nothing


def test_the_cost_of_a_strided_grouped_convolution() -> None:
    assert cost(nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2, bias=False), (4, 6, 6)) == (
        8 * 2 * 9,
        8 * 2 * 9 * 3 * 3,
    )


def test_attention_counts_whether_it_is_fused_or_not() -> None:
    vit = timm.create_model("deit_tiny_patch16_224", img_size=32, patch_size=4, depth=2, num_classes=10)
    tokens, width, heads = 65, 192, 3
    fused = cost(vit, (3, 32, 32)).macs
    for block in vit.blocks:
        assert block.attn.fused_attn
        block.attn.fused_attn = False
    assert fused == cost(vit, (3, 32, 32)).macs
    products = 2 * heads * tokens**2 * (width // heads)  # queries with keys, probabilities with values
    layers = 12 * width**2 * tokens
    assert fused == 2 * (products + layers) + 64 * 3 * 4 * 4 * width + width * 10


def test_mode_statistics_and_weights_stay_as_they_are() -> None:
    given = network().train()
    before = {key: value.clone() for key, value in given.state_dict().items()}
    cost(given, (2, 4, 5))
    assert all(module.training for module in given.modules())
    assert all(torch.equal(value, before[key]) for key, value in given.state_dict().items())
    assert all(parameter.grad is None for parameter in given.parameters())
    cost(given.eval(), (2, 4, 5))
    assert not any(module.training for module in given.modules())
