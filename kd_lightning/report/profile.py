"""What a network costs to keep and to run."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from kd_lightning.report.cost import cost
from kd_lightning.report.latency import latency, weights_bytes

BATCHES = (1, 64)


class Profile(NamedTuple):
    """What a network costs.

    Attributes:
        params: Number of parameters.
        macs: Multiply-adds of one image, of convolutions and matrix products.
        bytes: Of its weights as a safetensors file.
        latency: ``cpu, batch 1`` -> milliseconds for the batch, in float32.
    """

    params: int
    macs: int
    bytes: int
    latency: dict[str, float]


def together(profiles: Sequence[Profile]) -> Profile:
    """What several networks cost that answer one after another."""
    params, macs, size, latencies = zip(*profiles, strict=True)
    summed = {name: sum(each[name] for each in latencies) for name in latencies[0]}
    return Profile(sum(params), sum(macs), sum(size), summed)


class Profiler:
    """Measures each architecture once; equal ones, by what they print and the shapes of their weights, cost the same.

    Args:
        seconds: How long each latency is measured.
    """

    def __init__(self, seconds: float = 0.3) -> None:
        self.seconds = seconds
        self._known: dict[object, Profile] = {}

    def __call__(self, network: nn.Module, image_shape: tuple[int, int, int]) -> Profile:
        """The profile of a network for images ``[C, H, W]``: of a copy, on the CPU and on a GPU where there is one."""
        shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        key = str(network), str(shapes), image_shape
        if key not in self._known:
            plain = copy.deepcopy(network).cpu().float().to(memory_format=torch.contiguous_format).eval()
            devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
            times = {
                f"{device}, batch {batch}": latency(plain, image_shape, batch, torch.device(device), self.seconds)
                for device in devices
                for batch in BATCHES
            }
            self._known[key] = Profile(*cost(plain.to("cpu"), image_shape), weights_bytes(plain), times)
        return self._known[key]
