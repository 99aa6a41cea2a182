"""The networks of a contender, and the teacher's weights: those of no training, but with norms that fit the images."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.speed.setting import CLASSES, Pair, Setting
from kd_lightning.models import Network

SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
BATCHES, BATCH = 4, 64


def write_teacher(pair: Pair, path: Path) -> None:
    """A teacher whose answers are of usual size: its running statistics are those of noise."""
    network = Network(pair.teacher).build(CLASSES, seed=1).train()
    torch.manual_seed(0)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None  # the plain mean
    with torch.no_grad():
        for _ in range(BATCHES):
            network(torch.randn(BATCH, 3, pair.side, pair.side))
    save_file(network.state_dict(), path)


def student_and_teacher(setting: Setting) -> tuple[nn.Module, nn.Module]:
    """Both, on the CPU, in float32."""
    student = Network(setting.networks.student).build(CLASSES, seed=0)
    teacher = Network(setting.networks.teacher, weights=str(setting.weights)).build(CLASSES, seed=1)
    return student, teacher.eval().requires_grad_(False)


def classifier_name(network: nn.Module) -> str:
    """Of the last linear layer."""
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]


def sgd(network: nn.Module, foreach: bool | None = True) -> torch.optim.SGD:
    """The optimizer of every contender; with ``foreach`` all parameters are updated at once, as ours does it.

    None is torch's choice.
    """
    return torch.optim.SGD(network.parameters(), **SGD, foreach=foreach)


def device() -> torch.device:
    """Where all is measured."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
