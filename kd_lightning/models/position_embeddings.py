"""Position embeddings of a network for images of another size, interpolated."""

import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch.nn.functional as F
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

NAME = "pos_embed"


@runtime_checkable
class HasGrid(Protocol):
    """Patches of timm, which know how many there are: rows, columns."""

    grid_size: tuple[int, int]


@runtime_checkable
class HasPositions(Protocol):
    """A network with learnt positions, as timm's transformers: ``[1, tokens, D]`` or ``[1, D, rows, columns]``."""

    pos_embed: Tensor
    patch_embed: nn.Module


def resized(positions: Tensor, wanted: Tensor, grid: tuple[int, int] | None) -> Tensor:
    """Position embeddings interpolated to another grid of patches, bicubic, as the fine-tuning of DeiT does it.

    Those of tokens in front of the patches' (class, distillation) stay what they are.

    Source: Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML 2021,
    sec. 3 ("Fine-tuning at higher resolution").

    Args:
        positions: ``[1, P + L, D]`` of a square grid of L patches, or a map ``[1, D, H, W]``.
        wanted: Of the shape that is wanted.
        grid: Rows and columns of the patches that are wanted; None for a map.

    Raises:
        ValueError: if the one cannot be made from the other.
    """
    if positions.shape == wanted.shape:
        return positions
    refused = f"resize: {NAME} {list(positions.shape)} cannot be interpolated to {list(wanted.shape)}"
    if positions.ndim != wanted.ndim:
        raise ValueError(refused)
    if positions.ndim == 4 and positions.shape[1] == wanted.shape[1]:
        return F.interpolate(positions.float(), wanted.shape[2:], mode="bicubic").to(positions.dtype)
    if positions.ndim != 3 or grid is None or positions.shape[2] != wanted.shape[2]:
        raise ValueError(refused)
    in_front = wanted.shape[1] - grid[0] * grid[1]
    patches = positions.shape[1] - in_front
    if patches < 1 or math.isqrt(patches) ** 2 != patches:
        raise ValueError(f"{refused}: {patches} patches are no square grid")
    moved: Tensor = resample_abs_pos_embed(positions, list(grid), num_prefix_tokens=in_front, antialias=False)
    return moved


def with_resized(found: Mapping[str, Any], network: nn.Module) -> dict[str, Any]:
    """Weights whose position embeddings are those of a network's images; all others stay as they are.

    Args:
        found: Names and tensors, with or without wrappers' prefixes.
        network: Whose images say the size.

    Raises:
        ValueError: if the network has no such embeddings, or they cannot be interpolated.
    """
    if not isinstance(network, HasPositions):
        raise ValueError(f"resize: {type(network).__name__} has no {NAME} that could be interpolated: leave resize out")
    patches = network.patch_embed
    grid = patches.grid_size if isinstance(patches, HasGrid) else None
    return {
        key: resized(value, network.pos_embed, grid)
        if key.rpartition(".")[2] == NAME and isinstance(value, Tensor)
        else value
        for key, value in found.items()
    }
