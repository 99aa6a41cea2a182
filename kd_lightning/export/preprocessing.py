"""What a network takes: a description beside the exported file, and timm's own form of it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import timm
from torch import nn

from kd_lightning.export.part import Part

OF_TIMM = ("first_conv", "classifier", "fixed_input_size")  # of a network's pretrained_cfg: facts of its architecture


@runtime_checkable
class HasPretrainedCfg(Protocol):
    """A network of timm, which knows where its first and last layers are."""

    pretrained_cfg: Mapping[str, Any]
    num_features: int


class Preprocessing(NamedTuple):
    """What the images of the test set were, as the network saw them.

    Attributes:
        image_shape: (C, H, W).
        mean: Of each channel, in units of [0, 1]; None where the data module does not say it.
        std: The same for the standard deviation.
        crop_pct: Side of the centre crop over the shorter side of the resized image; 1 where images are taken as they
            are; None where it is not known.
        crop_mode: timm's: ``center``, ``squash`` or ``border``; None where there is no crop, or it is not known.
        interpolation: Of the resize; None where there is none, or it is not known.
    """

    image_shape: tuple[int, int, int]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    interpolation: str | None = None

    def as_json(self) -> dict[str, Any]:
        """What is known, under timm's names."""
        facts = self._asdict()
        size = list(facts.pop("image_shape"))
        known = {key: value for key, value in facts.items() if value is not None}
        return {"channels": size[0], "input_size": size} | known


def is_timms(part: Part) -> bool:
    """Whether timm builds the network by name: one of its own, or of this package, which are in its registry."""
    return part.recipe is not None and not part.combined and timm.is_model(part.recipe.name)


def timm_config(part: Part, preprocessing: Preprocessing, classes: Sequence[str], file: str) -> dict[str, Any]:
    """The ``config.json`` by which timm builds a network of `is_timms`: ``local-dir:FOLDER``, ``hf-hub:REPO_ID``.

    Args:
        part: What was exported.
        preprocessing: Of the images.
        classes: Their names.
        file: Name of the file of the weights.

    Raises:
        ValueError: if timm does not build it.
    """
    network: nn.Module = part.network
    if part.recipe is None or not isinstance(network, HasPretrainedCfg):
        raise ValueError("config.json is for networks that timm builds by name")
    facts = {key: network.pretrained_cfg[key] for key in OF_TIMM if network.pretrained_cfg.get(key) is not None}
    shown = {key: value for key, value in preprocessing.as_json().items() if key != "channels"}
    return {
        "architecture": part.recipe.name.partition(".")[0],
        "num_classes": len(classes),
        "num_features": network.num_features,
        "label_names": list(classes),
        "pretrained_cfg": {"num_classes": len(classes), "hf_hub_filename": file, **shown, **facts},
        "model_args": {"in_chans": preprocessing.image_shape[0], **part.recipe.kwargs},
    }
