"""The profiler: what it takes for the same network; no time is tested."""

import torch
from torch import Tensor, nn

from kd_lightning.report.profile import Profiler


class Scaled(nn.Module):
    """Prints alike whatever its width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :1] * self.scale


def test_networks_that_print_alike_are_not_taken_for_one_another() -> None:
    profiler = Profiler(seconds=0.001)
    small, large, again = (profiler(Scaled(width), (1, 2, 2)) for width in (3, 5, 3))
    assert (small.params, large.params) == (3, 5)
    assert again is small
