"""How a network of this package gets into timm's registry and is built from there."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, resolve_pretrained_cfg
from torch import nn

from kd_lightning.models.cifar.network import CifarNetwork

MEAN = (0.5071, 0.4867, 0.4408)
STD = (0.2675, 0.2565, 0.2761)
TIMM_ARGUMENTS = frozenset(
    {
        "cache_dir",
        "feature_cls",
        "features_only",
        "out_indices",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained_model_args",
    }
)


def default_cfgs_of(network: type[CifarNetwork], names: Iterable[str]) -> dict[str, Any]:
    """Default configurations, in timm's form, of networks without published weights.

    Mean and standard deviation are those of CIFAR-100's training set in the protocol.

    Args:
        network: The family.
        names: Names in the registry.
    """
    cfg = {
        "num_classes": 100,
        "input_size": (3, 32, 32),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": MEAN,
        "std": STD,
        "first_conv": network.first_conv,
        "classifier": "fc",
    }
    cfgs: dict[str, Any] = generate_default_cfgs({name: dict(cfg) for name in names})
    return cfgs


def build(
    network: type[CifarNetwork], name: str, pretrained: bool, arguments: Mapping[str, Any], **structure: Any
) -> nn.Module:
    """Build a registered network the way timm builds its own.

    Args:
        network: The family.
        name: Name in the registry.
        pretrained: Load the weights that ``pretrained_cfg`` or ``pretrained_cfg_overlay`` points to.
        arguments: What the caller of ``timm.create_model`` gave.
        structure: Arguments of the family that the name fixes.

    Returns:
        The `CifarNetwork`, or with ``features_only`` timm's wrapper, which gives the list of the stages' outputs.

    Raises:
        TypeError: if the network does not know an argument.
        ValueError: if weights are asked for and none are pointed to, or an argument is out of range.
    """
    known = [parameter for parameter in inspect.signature(network).parameters if parameter not in structure]
    unknown = [f"{key}={value!r}" for key, value in arguments.items() if key not in TIMM_ARGUMENTS.union(known)]
    if unknown:
        raise TypeError(f"{name} does not know the argument {', '.join(unknown)}; it takes {', '.join(known)}")
    source = resolve_pretrained_cfg(name, arguments.get("pretrained_cfg"), arguments.get("pretrained_cfg_overlay"))
    if pretrained and not (source.has_weights or source.state_dict):
        raise ValueError(
            f"pretrained=True, but no weights of {name} are published: use pretrained=False, "
            "with checkpoint_path=FILE for weights of your own"
        )
    model: nn.Module = build_model_with_cfg(
        network,
        name,
        pretrained,
        feature_cfg={"out_indices": tuple(range(network.num_stages)), "flatten_sequential": True},
        **structure,
        **arguments,
    )
    return model
