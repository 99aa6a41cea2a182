"""How long a network takes, and how large its file is."""

import torch
from torch import nn
from torch.utils.benchmark import Timer

from kd_lightning.models.taps import at_rest
from kd_lightning.models.weights import as_safetensors


def latency(
    network: nn.Module, image_shape: tuple[int, int, int], batch: int, device: torch.device, seconds: float = 0.5
) -> float:
    """Median time in milliseconds in which a network answers a batch, in eval mode, without gradients.

    On as many threads as torch has now; on a GPU with the wait for it.

    Args:
        network: It is moved to the device; its mode stays as it is.
        image_shape: (C, H, W).
        batch: How many images, >= 1.
        device: Where.
        seconds: For how long it is measured, at least.

    Raises:
        ValueError: if the batch is empty.
    """
    if batch < 1:
        raise ValueError(f"batch must be >= 1, got {batch}")
    parameter = next(network.to(device).parameters(), torch.empty(0))
    images = torch.zeros(batch, *image_shape, device=device, dtype=parameter.dtype)
    known = {"network": network, "images": images}
    with at_rest(network):
        timer = Timer("network(images)", globals=known, num_threads=torch.get_num_threads())
        return timer.blocked_autorange(min_run_time=seconds).median * 1000


def weights_bytes(network: nn.Module) -> int:
    """Size in bytes of the file that `save_weights` writes of a network."""
    return len(as_safetensors(network))
