import subprocess
import sys

import pytest
import torch
from torch import nn

from kd_lightning.models.memory_format import memory_format

# Plain torch alone dies in this on a CPU with AVX2 when the convolution's maps are in channels_last.
TRAINING = """
import torch
from torch import nn
from kd_lightning.models.memory_format import memory_format
torch.set_num_threads(1)
network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 16, 1, stride=2))
layout = memory_format(network, True)
network.to(memory_format=layout)
for _ in range(100):
    network(torch.randn(128, 3, 32, 32).to(memory_format=layout)).square().mean().backward()
    kept = [torch.empty(size) for size in range(1, 400, 7)]
print("done")
"""


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(6, 8, 1, stride=2), torch.contiguous_format),
        (nn.Conv2d(7, 8, 1, stride=2), torch.channels_last),
        (nn.Conv2d(6, 8, 1), torch.channels_last),
        (nn.Conv2d(6, 8, 3, stride=2), torch.channels_last),
    ],
)
def test_thin_maps_under_a_strided_convolution_are_contiguous(layer: nn.Module, expected: torch.memory_format) -> None:
    network = nn.Sequential(nn.ReLU(), nn.Sequential(layer))
    assert memory_format(network, channels_last=True) is expected
    assert memory_format(network, channels_last=False) is torch.contiguous_format


def test_a_thin_network_trains_in_one_thread() -> None:
    done = subprocess.run([sys.executable, "-c", TRAINING], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
