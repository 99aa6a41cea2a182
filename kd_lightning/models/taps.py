"""Taps: what a network computes on the way, by the name of the submodule that computes it."""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

LOGITS = "logits"
INPUT = ":in"
LISTED = 40

_active: ContextVar[dict[tuple[int, bool], list[object]] | None] = ContextVar("taps", default=None)


class TapHook:
    """Hands a submodule's input and output to the context that listens; a copy or a pickle of it is as good."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """As a forward hook of torch."""
        heard = _active.get()
        if heard is None:
            return
        for is_input, value in ((True, args[0] if args else None), (False, output)):
            if (key := (id(module), is_input)) in heard:
                heard[key].append(value)


def install(network: nn.Module, names: Sequence[str]) -> None:
    """Prepare taps by name, before the network is compiled or first run under `tapped`.

    In-place activations of the network are switched off, since one would overwrite the tap in front of it.

    Args:
        network: Any network.
        names: Names of submodules (``layer2``: its output, ``layer2:in``: its input), or ``logits``.

    Raises:
        ValueError: if there is no submodule of that name, with what there is, nearest first.
    """
    for name in names:
        if name == LOGITS:
            continue
        module = _submodule(network, name)
        if not any(isinstance(hook, TapHook) for hook in module._forward_hooks.values()):
            module.register_forward_hook(TapHook())
        for activation in network.modules():
            if getattr(activation, "inplace", False) is True:
                activation.inplace = False  # type: ignore[assignment]


def _submodule(network: nn.Module, name: str) -> nn.Module:
    modules: dict[str, nn.Module] = {found: module for found, module in network.named_modules() if found}
    wanted = name.removesuffix(INPUT)
    if wanted in modules:
        return modules[wanted]
    near = difflib.get_close_matches(wanted, modules, n=LISTED, cutoff=0.4)
    ordered = near + [found for found in modules if found not in near]
    more = f", and {len(ordered) - LISTED} more" if len(ordered) > LISTED else ""
    raise ValueError(
        f"tap {name!r}: {type(network).__name__} has no such submodule; it has, nearest first: "
        f"{', '.join(ordered[:LISTED])}{more}; or take {LOGITS!r}"
    )


@contextmanager
def tapped(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Within the context, one forward of this very network fills the dict that is given, by name.

    The values keep their graph. Other networks that run within the context, copies included, leave no trace. Contexts
    are not nested: only the innermost one listens.
    ``logits`` is not filled: it is what the forward returns.

    Raises:
        ValueError: on leaving, if a tapped submodule did not run, ran twice, or gave something else than a Tensor.
    """
    wanted = {name: (id(_submodule(network, name)), name.endswith(INPUT)) for name in names if name != LOGITS}
    heard: dict[tuple[int, bool], list[object]] = {key: [] for key in wanted.values()}
    taps: dict[str, Tensor] = {}
    token = _active.set(heard)
    try:
        yield taps
    finally:
        _active.reset(token)
    for name, key in wanted.items():
        if len(heard[key]) != 1:
            raise ValueError(
                f"tap {name!r} ran {len(heard[key])} times in one forward: name a submodule that runs once"
            )
        value = heard[key][0]
        if not isinstance(value, Tensor):
            raise ValueError(f"tap {name!r} gives a {type(value).__name__}, not a Tensor: name a submodule inside it")
        taps[name] = value


@torch.no_grad()
def probe(network: nn.Module, names: Sequence[str], image_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes ``[2, ...]`` of the taps and of ``logits`` for images ``[2, *image_shape]``; the network is unchanged."""
    training = {module: module.training for module in network.modules()}
    parameter = next(network.parameters(), torch.empty(0))
    install(network, names)
    try:
        with torch.random.fork_rng(), tapped(network.eval(), names) as taps:
            logits = network(torch.zeros(2, *image_shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        for module, mode in training.items():
            module.training = mode
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{type(network).__name__} must return logits [N, C], got {shape}")
    return {name: tuple(value.shape) for name, value in {**taps, LOGITS: logits}.items()}
