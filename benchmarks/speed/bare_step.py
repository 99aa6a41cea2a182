"""The bare step of training a student alone, as the floor does it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.speed.networks import sgd

Then = Callable[[], object]
Step = Callable[[Tensor, Tensor], None]


def bare_step(student: nn.Module, lower: bool, then: Then = lambda: None) -> Step:
    """A step on images ``[N, C, H, W]`` and class indices ``[N]``, in channels_last.

    Args:
        student: On the device of the images, in channels_last.
        lower: In bfloat16 autocast.
        then: Done between the backward pass and the optimizer's step.
    """
    optimizer = sgd(student)

    def step(image: Tensor, target: Tensor) -> None:
        image = image.to(memory_format=torch.channels_last)
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=lower):
            loss = F.cross_entropy(student(image), target)
        loss.backward()
        then()
        optimizer.step()
        optimizer.zero_grad()

    return step
