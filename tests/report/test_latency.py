"""What a network weighs and how it is timed; no time is tested."""

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import kd_lightning.models as models
from kd_lightning.report.latency import latency, weights_bytes


class Watched(nn.Module):
    """Notes how it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.asked: set[object] = set()

    def forward(self, images: Tensor) -> Tensor:
        self.asked.add((tuple(images.shape), images.dtype, self.training, torch.is_grad_enabled()))
        return images * self.scale


def test_it_is_asked_in_eval_mode_without_gradients_and_its_mode_comes_back() -> None:
    network = Watched().train()
    assert latency(network, (3, 4, 5), batch=2, device=torch.device("cpu"), seconds=0.001) > 0
    assert network.asked == {((2, 3, 4, 5), torch.float64, False, False)}
    assert network.training
    assert torch.is_grad_enabled()


def test_an_empty_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match="batch must be >= 1, got 0"):
        latency(Watched(), (3, 4, 5), batch=0, device=torch.device("cpu"))


@pytest.mark.parametrize("name", ["cifar_resnet8", "deit_tiny_patch16_224"])
def test_the_bytes_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    network = timm.create_model(name, num_classes=7)
    models.save_weights(network, tmp_path / "student.safetensors")
    assert weights_bytes(network) == (tmp_path / "student.safetensors").stat().st_size


def test_tied_and_transposed_weights_count_as_in_the_file(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    network[0].bias = nn.Parameter(torch.ones(2, 3).T[:, 0])
    models.save_weights(network, tmp_path / "student.safetensors")
    assert weights_bytes(network) == (tmp_path / "student.safetensors").stat().st_size
