"""Taps: what a network computes on the way, by the name of the submodule that computes it."""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from kd_lightning.models.token_maps import to_map, to_tokens

LOGITS = "logits"
SHAPED = {"map": to_map, "tokens": to_tokens}
LISTED = 40

Heard = dict[tuple[int, bool], list[object]]

_active: ContextVar[tuple[Heard, ...]] = ContextVar("taps", default=())


@runtime_checkable
class CanFuse(Protocol):
    """Attention of timm, which computes its probabilities where ``fused_attn`` is False only."""

    fused_attn: bool
    attn_drop: nn.Module


@dataclass(frozen=True)
class Place:
    """Where a tap listens, and what is made of what it hears."""

    module: str
    is_input: bool
    shapes: tuple[str, ...]


class TapHook:
    """Hands a submodule's input and output to the contexts that listen; a copy or a pickle of it is as good."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """As a forward hook of torch."""
        for heard in _active.get():
            for is_input, value in ((True, args[0] if args else None), (False, output)):
                if (key := (id(module), is_input)) in heard:
                    heard[key].append(value)


def place(name: str) -> Place:
    """The place of a tap's name, ``submodule[:in][:probabilities][:map|:tokens]``.

    Raises:
        ValueError: if there is another suffix.
    """
    module, *suffixes = name.split(":")
    is_input = "in" in suffixes or "probabilities" in suffixes
    if unknown := set(suffixes) - {"in", "probabilities", *SHAPED}:
        raise ValueError(
            f"tap {name!r}: a submodule's name may be followed by :in, :probabilities, :map or :tokens, "
            f"got :{', :'.join(sorted(unknown))}"
        )
    if "probabilities" in suffixes:
        module += ".attn_drop"
    return Place(module, is_input, tuple(suffix for suffix in suffixes if suffix in SHAPED))


def install(network: nn.Module, names: Sequence[str]) -> None:
    """Prepare taps by name, before the network is compiled or first run under `tapped`.

    In-place activations of the network are switched off, since one would overwrite the tap in front of it; fused
    attention is switched off where its probabilities are tapped.

    Args:
        network: Any network.
        names: ``layer2``: the submodule's output; ``layer2:in``: its input; ``blocks.3.attn:probabilities``: attention
            of timm, ``[N, heads, L, L]``; either followed by ``:map`` or ``:tokens`` (see `to_map`); or ``logits``.

    Raises:
        ValueError: if there is no submodule of that name, with what there is, nearest first.
    """
    for name in names:
        if name == LOGITS:
            continue
        if ":probabilities" in name:
            attention = _submodule(network, name.partition(":")[0], name)
            if not isinstance(attention, CanFuse):
                raise ValueError(f"tap {name!r}: {type(attention).__name__} is no attention of timm, with attn_drop")
            attention.fused_attn = False
        module = _submodule(network, place(name).module, name)
        if not any(isinstance(hook, TapHook) for hook in module._forward_hooks.values()):
            module.register_forward_hook(TapHook())
    if any(name != LOGITS for name in names):
        out_of_place(network)


def out_of_place(network: nn.Module) -> None:
    """Switch in-place activations off: one would overwrite what comes in front of it."""
    for activation in network.modules():
        if getattr(activation, "inplace", False) is True:
            activation.inplace = False  # type: ignore[assignment]


def _submodule(network: nn.Module, wanted: str, tap: str) -> nn.Module:
    try:
        if wanted:
            return network.get_submodule(wanted)
    except AttributeError:
        pass
    modules = [found for found, _ in network.named_modules() if found]
    near = difflib.get_close_matches(wanted, modules, n=LISTED, cutoff=0.4)
    ordered = near + [found for found in modules if found not in near]
    more = f", and {len(ordered) - LISTED} more" if len(ordered) > LISTED else ""
    raise ValueError(
        f"tap {tap!r}: {type(network).__name__} has no such submodule; it has, nearest first: "
        f"{', '.join(ordered[:LISTED])}{more}; or take {LOGITS!r}"
    )


@contextmanager
def tapped(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Within the context, one forward of this very network fills the dict that is given, by name.

    The values keep their graph. Other networks that run within the context, copies included, leave no trace. Of nested
    contexts, each listens.
    ``logits`` is not filled: it is what the forward returns.

    Raises:
        ValueError: on leaving, if a tapped submodule did not run, ran twice, or gave something else than a Tensor.
    """
    places = {name: place(name) for name in names if name != LOGITS}
    wanted = {name: (id(_submodule(network, at.module, name)), at.is_input) for name, at in places.items()}
    heard: Heard = {key: [] for key in wanted.values()}
    taps: dict[str, Tensor] = {}
    token = _active.set((*_active.get(), heard))
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
        for shape in places[name].shapes:
            value = SHAPED[shape](value, network)
        taps[name] = value


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Inside, the network is in eval mode, with gradients: its running statistics do not see what it is asked."""
    training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


@contextmanager
def at_rest(network: nn.Module) -> Iterator[None]:
    """Inside, the network is in eval mode and no gradient is kept; its modes and torch's generators come back after."""
    with evaluating(network), torch.no_grad(), torch.random.fork_rng():
        yield


def probe(network: nn.Module, names: Sequence[str], image_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes ``[2, ...]`` of the taps and of ``logits`` for images ``[2, *image_shape]``; the network is unchanged."""
    parameter = next(network.parameters(), torch.empty(0))
    install(network, names)
    with at_rest(network), tapped(network, names) as taps:
        logits = network(torch.zeros(2, *image_shape, device=parameter.device, dtype=parameter.dtype))
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{type(network).__name__} must return logits [N, C], got {shape}")
    return {name: tuple(value.shape) for name, value in {**taps, LOGITS: logits}.items()}
