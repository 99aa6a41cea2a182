"""Token sequences and maps: how a transformer's features become a convolutional network's, and back."""

import math
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class HasPrefixTokens(Protocol):
    """A transformer that says how many class and distillation tokens come before the patches, as timm's do."""

    num_prefix_tokens: int


@runtime_checkable
class HasPatches(Protocol):
    """A transformer whose patch embedding says its grid, as timm's do."""

    patch_embed: nn.Module


@runtime_checkable
class HasGrid(Protocol):
    """A patch embedding with a grid of (rows, columns)."""

    grid_size: tuple[int, int]


@runtime_checkable
class HasOutputFormat(Protocol):
    """A network whose maps have their channels last, ``NHWC``, as timm's Swin has."""

    output_fmt: str


def prefix_tokens(network: nn.Module) -> int:
    """How many class and distillation tokens precede a network's patches."""
    return network.num_prefix_tokens if isinstance(network, HasPrefixTokens) else 0


def _is_bare(tokens: Tensor, network: nn.Module) -> bool:
    embedding = network.patch_embed if isinstance(network, HasPatches) else None
    return isinstance(embedding, HasGrid) and tokens.shape[1] == embedding.grid_size[0] * embedding.grid_size[1]


def _grid(network: nn.Module, tokens: int) -> tuple[int, int] | None:
    embedding = network.patch_embed if isinstance(network, HasPatches) else None
    if isinstance(embedding, HasGrid) and embedding.grid_size[0] * embedding.grid_size[1] == tokens:
        return embedding.grid_size
    side = math.isqrt(tokens)
    return (side, side) if side * side == tokens else None


def to_map(feature: Tensor, network: nn.Module) -> Tensor:
    """A feature as a map ``[N, C, H, W]``.

    Args:
        feature: Tokens ``[N, prefix + H W, C]``, of which class and distillation tokens are dropped; a map ``[N, H, W,
            C]`` of a network that says ``NHWC``; any other map is given back as it is.
        network: Whose feature it is.

    Raises:
        ValueError: if it is neither, or the tokens fill no grid.
    """
    if feature.ndim == 4:
        last = isinstance(network, HasOutputFormat) and str(network.output_fmt).upper().endswith("NHWC")
        return feature.permute(0, 3, 1, 2) if last else feature
    if feature.ndim != 3:
        raise ValueError(f"only tokens [N, L, C] and maps can be made a map, got {tuple(feature.shape)}")
    # The patch embedding's own output has no class token yet.
    patches = feature if _is_bare(feature, network) else feature[:, prefix_tokens(network) :]
    if (grid := _grid(network, patches.shape[1])) is None:
        raise ValueError(f"{patches.shape[1]} patch tokens fill neither the network's grid nor a square one")
    return patches.mT.reshape(len(patches), -1, *grid)


def to_tokens(feature: Tensor, network: nn.Module) -> Tensor:
    """A feature as patch tokens ``[N, H W, C]``, row by row; see `to_map`."""
    return to_map(feature, network).flatten(2).mT
