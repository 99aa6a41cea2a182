"""The memory format that a network computes in."""

import torch
from torch import nn

FEWEST = 7  # channels of a 1x1 convolution with a stride


def memory_format(network: nn.Module, channels_last: bool) -> torch.memory_format:
    """The memory format of a network's weights and maps: channels_last where it is asked for and safe.

    In one thread, on a CPU with AVX2 alone, the backward pass of oneDNN (in torch 2.14) writes past its buffer for a
    1x1 convolution with a stride over fewer than 7 channels in channels_last. Maps that thin gain nothing from it.

    Args:
        network: Any.
        channels_last: Whether it is asked for.
    """
    unsafe = any(
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.in_channels < FEWEST
        for module in network.modules()
    )
    return torch.channels_last if channels_last and not unsafe else torch.contiguous_format
