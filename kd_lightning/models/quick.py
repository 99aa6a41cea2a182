"""A frozen network made quick: batch normalisation folded into convolutions, weights in the run's precision."""

import copy
from collections.abc import Iterable, Sequence

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kd_lightning.models.taps import LOGITS, at_rest, install, place, tapped
from kd_lightning.models.trace import traced

TOLERANCE = 1e-3  # of the largest output on noise, which folding in float32 stays far below
CAST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # what autocast would cast anew in every step


def foldable(network: nn.Module, image_shape: tuple[int, ...], taps: Iterable[str] = ()) -> list[tuple[str, str]]:
    """(convolution, batch normalisation) by name, where the second follows right on the first and nobody listens.

    A tap listens where it hears that very tensor, also by the name of a parent that passes it on.

    Args:
        network: Not changed.
        image_shape: (C, H, W) of its images.
        taps: Names that are listened to, see `install`; the output of a normalisation may be.

    Raises:
        ValueError: if there is no submodule of such a name.
    """
    own, names = copy.deepcopy(network), [name for name in taps if name != LOGITS]
    install(own, names)
    runs, _ = traced(own, image_shape)
    listened = {(own.get_submodule(found.module), found.is_input) for found in map(place, names)}
    heard = {id(run.entered) for run in runs if (run.module, True) in listened}
    heard |= {id(run.left) for run in runs if (run.module, False) in listened}
    left = {id(run.left): run for run in runs if type(run.module) is nn.Conv2d and id(run.left) not in heard}
    pairs = []
    for run in runs:
        if type(run.module) not in (nn.BatchNorm2d, BatchNormAct2d) or run.module.running_mean is None:
            continue
        if (conv := left.get(id(run.entered))) is not None:
            pairs.append((conv.name, run.name))
    return pairs


def folded(network: nn.Module, image_shape: tuple[int, ...], taps: Iterable[str] = ()) -> nn.Module:
    """A network with the same outputs in which convolutions have taken up the normalisations that follow them.

    On noise, its logits and each tap differ from the network's by less than 1e-3 of the largest value. Where one would
    differ by more, as in a network that uses a convolution's output twice, or where there is nothing to fold, it is the
    network itself. One in half precision is folded and compared in float32.

    Args:
        network: In eval mode, its normalisations with running statistics.
        image_shape: (C, H, W) of its images.
        taps: See `foldable`; the network that is made has them installed.
    """
    names = list(taps)
    if not (pairs := foldable(network, image_shape, names)):
        return network
    parameter = next(network.parameters(), torch.empty(0))
    made = copy.deepcopy(network).cpu()  # where nothing is rounded to TF32, which differs by more than the tolerance
    if lower := parameter.dtype.itemsize < 4:
        made.float()
    try:
        before = _answers(made, image_shape, names)
        _fold(made, pairs)
        after = _answers(made, image_shape, names)
    except (AttributeError, RuntimeError, ValueError):  # it asks a normalisation for something
        return network
    same = all((after[name] - value).abs().max() <= TOLERANCE * value.abs().max() for name, value in before.items())
    if not same:
        return network
    return made.to(parameter.device, parameter.dtype) if lower else made.to(parameter.device)


def _fold(network: nn.Module, pairs: Iterable[tuple[str, str]]) -> None:
    for conv_name, norm_name in pairs:
        conv, norm = network.get_submodule(conv_name), network.get_submodule(norm_name)
        if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            continue
        rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        network.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm).requires_grad_(False))
        network.set_submodule(norm_name, rest.eval())


def _answers(network: nn.Module, image_shape: tuple[int, ...], names: Sequence[str]) -> dict[str, Tensor]:
    """Taps and logits of noise."""
    install(network, names)
    parameter = next(network.parameters(), torch.empty(0))
    noise = torch.randn(2, *image_shape, generator=torch.Generator().manual_seed(0)).to(parameter)
    with at_rest(network), tapped(network, names) as values, torch.autocast(noise.device.type, enabled=False):
        logits = network(noise)
    return {**values, LOGITS: logits}


def cast_once(network: nn.Module, dtype: torch.dtype) -> None:
    """Convolutions and linear layers in the precision that autocast would give them at every call, in place."""
    for module in network.modules():
        if type(module) in CAST:
            module.to(dtype)
