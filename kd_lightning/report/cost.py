"""What a network costs: parameters and multiply-adds."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


class Cost(NamedTuple):
    """``params``: number of parameters; ``macs``: multiply-adds of one image, of convolutions and matrix products."""

    params: int
    macs: int


@torch.no_grad()
def cost(network: nn.Module, image_shape: tuple[int, int, int]) -> Cost:
    """The cost of a network for one image ``[C, H, W]``; its mode and weights stay as they are."""
    training = network.training
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused kernels are not counted
        network.eval()(torch.zeros(1, *image_shape))
    network.train(training)
    return Cost(sum(parameter.numel() for parameter in network.parameters()), counter.get_total_flops() // 2)
