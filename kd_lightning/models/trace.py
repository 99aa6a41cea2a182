"""A trace: what a network's submodules compute in one forward, in the order in which they finish."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.models.taps import at_rest, out_of_place


@dataclass(frozen=True, eq=False)
class Run:
    """One run of one submodule.

    Attributes:
        name: Of the submodule.
        module: The submodule.
        entered: Its first input, where that is a Tensor.
        left: Its output, where that is a Tensor.
    """

    name: str
    module: nn.Module
    entered: Tensor | None
    left: Tensor | None


def traced(network: nn.Module, image_shape: tuple[int, ...]) -> tuple[list[Run], object]:
    """The runs of all submodules on two noise images ``[2, *image_shape]``, and what the network returns.

    A submodule that runs twice is left out. In-place activations are switched off, for one would overwrite what came in
    front of it; the network is unchanged otherwise.
    """
    runs: list[Run] = []
    names = {module: name for name, module in network.named_modules() if name}
    parameter = next(network.parameters(), torch.empty(0))
    noise = torch.randn(2, *image_shape, generator=torch.Generator().manual_seed(0)).to(
        parameter.device, parameter.dtype
    )

    def note(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        entered = args[0] if args and isinstance(args[0], Tensor) else None
        runs.append(Run(names[module], module, entered, output if isinstance(output, Tensor) else None))

    out_of_place(network)
    hooks = [module.register_forward_hook(note) for module in names]
    try:
        with at_rest(network):
            returned = network(noise)
    finally:
        for hook in hooks:
            hook.remove()
    times = Counter(run.name for run in runs)
    return [run for run in runs if times[run.name] == 1], returned
