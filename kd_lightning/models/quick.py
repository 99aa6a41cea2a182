"""A frozen network made quick: batch normalisation folded into convolutions, weights in the run's precision."""

import copy
from collections.abc import Iterable

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kd_lightning.models.taps import at_rest, place
from kd_lightning.models.trace import traced

TOLERANCE = 1e-3  # of the largest output on noise, which folding in float32 stays far below
CAST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # what autocast would cast anew in every step


def foldable(network: nn.Module, image_shape: tuple[int, ...], taps: Iterable[str] = ()) -> list[tuple[str, str]]:
    """(convolution, batch normalisation) by name, where the second follows right on the first and nobody listens.

    Args:
        network: Not changed.
        image_shape: (C, H, W) of its images.
        taps: Names of submodules that are listened to; the output of a normalisation may be.
    """
    heard = {(found.module, found.is_input) for found in map(place, taps)}
    runs, _ = traced(copy.deepcopy(network), image_shape)
    left = {id(run.left): run for run in runs if type(run.module) is nn.Conv2d and run.left is not None}
    pairs = []
    for run in runs:
        if type(run.module) not in (nn.BatchNorm2d, BatchNormAct2d) or run.module.running_mean is None:
            continue
        conv = left.get(id(run.entered)) if run.entered is not None else None
        if conv is not None and (conv.name, False) not in heard and (run.name, True) not in heard:
            pairs.append((conv.name, run.name))
    return pairs


def folded(network: nn.Module, image_shape: tuple[int, ...], taps: Iterable[str] = ()) -> nn.Module:
    """A network with the same outputs in which convolutions have taken up the normalisations that follow them.

    On noise, its logits differ from the network's by less than 1e-3 of the largest. Where they would differ by more, as
    in a network that uses a convolution's output twice, or where there is nothing to fold, it is the network itself.

    Args:
        network: In eval mode, its normalisations with running statistics.
        image_shape: (C, H, W) of its images.
        taps: See `foldable`.
    """
    if not (pairs := foldable(network, image_shape, taps)):
        return network
    made = copy.deepcopy(network)
    for conv_name, norm_name in pairs:
        conv, norm = made.get_submodule(conv_name), made.get_submodule(norm_name)
        if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            continue
        rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        made.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm).requires_grad_(False))
        made.set_submodule(norm_name, rest)
    made.eval()
    parameter = next(network.parameters(), torch.empty(0))
    noise = torch.randn(2, *image_shape, generator=torch.Generator().manual_seed(0)).to(parameter)
    with at_rest(network), at_rest(made), torch.autocast(noise.device.type, enabled=False):
        try:
            before, after = network(noise), made(noise)
        except (AttributeError, RuntimeError):  # it asks a normalisation for something
            return network
    same = (before - after).abs().max() <= TOLERANCE * before.abs().max()
    return made if bool(same) else network


def cast_once(network: nn.Module, dtype: torch.dtype) -> None:
    """Convolutions and linear layers in the precision that autocast would give them at every call, in place."""
    for module in network.modules():
        if type(module) in CAST:
            module.to(dtype)
