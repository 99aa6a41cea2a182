"""A network with a projection head beside its classifier, for losses that need no labels."""

from collections.abc import Mapping
from typing import Any, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.models.network import Network

NARROW = 256  # width in front of the prototypes, as in the paper


@runtime_checkable
class Embeds(Protocol):
    """A network with timm's interface."""

    num_features: int

    def forward_features(self, x: Tensor) -> Tensor:
        """The last features, not pooled."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last features to logits, or to the classifier's input."""

    def get_classifier(self) -> nn.Module:
        """The classifier."""


class Projection(nn.Module):
    """Three layers, the first two with batch normalisation and GELU, then the cosine with each of K prototypes.

    Source: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, app. C, with the
    prototypes' length fixed at 1. Their transformers go without batch normalisation; behind a small convolutional
    network the answers to all images would be so alike that the centred ones vanish.

    Args:
        in_features: D.
        hidden: Width of the first two layers.
        outputs: K.
    """

    def __init__(self, in_features: int, hidden: int, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (in_features, hidden):
            layers += [nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, NARROW))
        self.prototypes = nn.Parameter(torch.randn(outputs, NARROW))

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings ``[N, D]`` to cosines in [-1, 1], ``[N, K]``."""
        return F.linear(F.normalize(self.layers(x), dim=1), F.normalize(self.prototypes, dim=1))


class ProjectedStudent(nn.Module):
    """A network whose embedding also goes through a projection head, which is tapped as ``projection``.

    With ``probe`` the classifier learns from the embedding without changing it: a term of the labels then trains a
    linear probe, and all else learns from the projection alone. The answer is the classifier's.

    Args:
        network: The recipe of the network, or its fields; it must have timm's interface.
        outputs: K of the projection, >= 2.
        hidden: Width of its hidden layers, >= 1.
        probe: Whether no gradient of the classifier reaches the rest.
        num_classes: Number of classes, which comes from the data.
        in_chans: Channels of the images.

    Raises:
        ValueError: if an argument is out of range, or the network lacks timm's interface.
    """

    def __init__(
        self,
        network: Network | Mapping[str, Any],
        outputs: int = 4096,
        hidden: int = 512,
        probe: bool = True,
        num_classes: int = 1000,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        if outputs < 2:
            raise ValueError(f"outputs must be >= 2, got {outputs}")
        if hidden < 1:
            raise ValueError(f"hidden must be >= 1, got {hidden}")
        recipe = network if isinstance(network, Network) else Network(**network)
        built = recipe.build(num_classes, in_chans)
        if not isinstance(built, Embeds):
            raise ValueError(f"network {recipe.name} must have forward_features and forward_head, as timm's")
        self.backbone, self.probe = built, probe
        features = getattr(built, "head_hidden_size", built.num_features)
        self.num_features = int(features)
        self.projection = Projection(self.num_features, hidden, outputs)

    def get_classifier(self) -> nn.Module:
        """The network's classifier."""
        return cast(Embeds, self.backbone).get_classifier()

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, in_chans, H, W]`` to logits ``[N, num_classes]``."""
        network = cast(Embeds, self.backbone)
        embedding = network.forward_head(network.forward_features(x), pre_logits=True)
        self.projection(embedding)
        logits: Tensor = self.get_classifier()(embedding.detach() if self.probe else embedding)
        return logits
