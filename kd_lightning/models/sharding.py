"""A network spread over the ranks: each holds its part, and a block's weights come together while it runs (FSDP2)."""

from typing import Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


@runtime_checkable
class HasBlocks(Protocol):
    """A network that is a row of blocks, as timm's transformers are."""

    blocks: nn.Module


@runtime_checkable
class HasStages(Protocol):
    """A network that is a row of stages, as many of timm's convolutional ones are."""

    stages: nn.Module


def units(network: nn.Module) -> list[nn.Module]:
    """The parts of a network whose weights come together at one time; the rest of it is one more.

    They are the blocks or stages that it offers; a network that offers none is one unit, of which each rank holds its
    part between the steps and the whole within them.
    """
    rows = [network.blocks] if isinstance(network, HasBlocks) else []
    rows += [network.stages] if isinstance(network, HasStages) else []
    return [part for row in rows if isinstance(row, nn.Sequential | nn.ModuleList) for part in row]


def is_sharded(module: nn.Module) -> bool:
    """Whether other ranks hold parts of it."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def first_ranks(module: nn.Module, device: torch.device) -> None:
    """Give parameters and buffers the values of the first rank, one by one by way of the device."""
    for tensor in [*module.parameters(), *module.buffers()]:
        shown: Tensor = tensor.detach().to(device).contiguous()
        dist.broadcast(shown, 0)
        with torch.no_grad():
            tensor.copy_(shown)


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Spread the parameters of a network over the ranks of a mesh, in place; buffers stay whole.

    Weights are gathered for each unit (`units`) before it runs and freed after, in the forward and the backward pass.
    Submodules keep their names and hooks, so taps go on to work; the network can no longer be copied.

    Args:
        network: The same on all ranks; laid out contiguously by this.
        mesh: Of one dimension.

    Raises:
        ValueError: if a parameter has no dimension along which it could be divided; it is named.
    """
    for name, parameter in network.named_parameters():
        if parameter.ndim == 0:
            raise ValueError(f"the parameter {name} is a single number, which cannot be sharded: take the strategy ddp")
    network.to(memory_format=torch.contiguous_format)
    for unit in units(network):
        if any(True for _ in unit.parameters()):
            fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    fully_shard(network, mesh=mesh, reshard_after_forward=True)


def whole(value: object) -> object:
    """A sharded tensor gathered on the CPU, which every rank must ask for; anything else as it is."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().cpu() if isinstance(value, Tensor) else value


def part_like(value: object, like: object) -> object:
    """This rank's part of a whole tensor, where there is a sharded one of its shape to go by; else the value itself."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    on_device = value.to(like.device).contiguous()
    return distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)
