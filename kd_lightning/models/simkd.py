"""SimKD: a student that answers through its teacher's classifier."""

from collections.abc import Mapping
from typing import Any, Protocol, cast, runtime_checkable

from torch import Tensor, nn

from kd_lightning.models.filled_later import is_filled_later
from kd_lightning.models.network import Network
from kd_lightning.models.token_maps import to_map

Recipe = Network | Mapping[str, Any]


@runtime_checkable
class Backbone(Protocol):
    """A network with timm's interface."""

    num_features: int

    def forward_features(self, x: Tensor) -> Tensor:
        """The last features, not pooled."""

    def get_classifier(self) -> nn.Module:
        """The classifier."""

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier; by nothing where ``num_classes`` is 0."""


def projector(in_chs: int, out_chs: int, factor: int) -> nn.Sequential:
    """1x1, 3x3 and 1x1 convolutions, each with batch normalisation and ReLU, over ``out_chs / factor`` channels."""
    mid = max(1, out_chs // factor)
    layers: list[nn.Module] = []
    for first, last, kernel in ((in_chs, mid, 1), (mid, mid, 3), (mid, out_chs, 1)):
        layers += [
            nn.Conv2d(first, last, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(last),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


def _backbone(role: str, recipe: Recipe, num_classes: int, in_chans: int) -> tuple[nn.Module, Backbone]:
    network = recipe if isinstance(recipe, Network) else Network(**recipe)
    if role == "teacher" and network.weights is None and not is_filled_later():
        raise ValueError(f"teacher {network.name} has no weights: its classifier would be noise; give teacher.weights")
    built = network.build(num_classes, in_chans, "teacher" if role == "teacher" else "student")
    if not isinstance(built, Backbone):
        raise ValueError(
            f"{role} {network.name} must have forward_features, num_features and get_classifier, as timm's"
        )
    return built, cast(Backbone, built)


class SimKDStudent(nn.Module):
    """A student's features, projected to the teacher's, then the teacher's own classifier, which is not trained.

    Projector and classifier serve at inference too, so both are exported. What trains it is `Hint` with adapter
    ``none`` between the tap ``projector`` and the teacher's ``last_map``, alone, with weight 1.

    Source: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022.

    Args:
        student: The recipe of the student's network, or its fields; its own classifier is left out.
        teacher: The recipe of the teacher, or its fields, with weights; its classifier takes the mean of its last map.
        factor: Channels of the teacher's last map over those inside the projector, >= 1.
        num_classes: Number of classes, which comes from the data.
        in_chans: Channels of the images.

    Raises:
        ValueError: if the teacher has no weights, unless all is `filled_later`, or one of the two lacks timm's
            interface.
    """

    def __init__(
        self, student: Recipe, teacher: Recipe, factor: int = 2, num_classes: int = 1000, in_chans: int = 3
    ) -> None:
        super().__init__()
        if factor < 1:
            raise ValueError(f"factor must be >= 1, got {factor}")
        self.backbone, own = _backbone("student", student, num_classes, in_chans)
        _, theirs = _backbone("teacher", teacher, num_classes, in_chans)
        own.reset_classifier(0)
        self.classifier = theirs.get_classifier().requires_grad_(False)
        if not isinstance(self.classifier, nn.Linear):
            raise ValueError(f"the teacher's classifier must be a linear layer, got {type(self.classifier).__name__}")
        self.num_features = self.classifier.in_features
        self.projector = projector(own.num_features, self.num_features, factor)

    def get_classifier(self) -> nn.Module:
        """The teacher's classifier."""
        return self.classifier

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``[N, in_chans, H, W]`` to the projected map ``[N, num_features, h, w]``."""
        features: Tensor = cast(Backbone, self.backbone).forward_features(x)
        projected: Tensor = self.projector(to_map(features, self.backbone))
        return projected

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, in_chans, H, W]`` to logits ``[N, num_classes]``."""
        logits: Tensor = self.classifier(self.forward_features(x).mean(dim=(2, 3)))
        return logits
