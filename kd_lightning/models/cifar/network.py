"""What all networks of the protocol have in common: stem, stages, neck, pooled classifier, and named taps."""

from abc import ABC
from collections.abc import Iterable
from typing import ClassVar, TypedDict

from torch import Tensor, nn


class StemInfo(TypedDict):
    """Where the stem's output is tapped.

    Attributes:
        num_chs: Channels of the output.
        reduction: Height of the input over height of the output.
        module: Name of the submodule whose output it is.
    """

    num_chs: int
    reduction: int
    module: str


class StageInfo(StemInfo):
    """Where a stage's output is tapped, in the form of timm's ``feature_info``.

    Attributes:
        preact: Name of the submodule whose *input* is the stage's value before the activation.
    """

    preact: str


class CifarNetwork(nn.Module, ABC):
    """A classifier of small images with timm's model interface; the families inherit from it.

    ``stem``, then ``stages`` (``stages.0``, ``stages.1``, ...), then ``neck``, then global average pooling, dropout and
    the linear classifier ``fc``. No activation works in place, so every submodule's input and output can be tapped.
    A network takes any image size that survives its reductions; the protocol's figures are for 32x32.

    Args:
        stem: First layers; its output is the tap of ``stem_info``.
        stages: One module a stage.
        neck: What stands between the last stage and the pooling, an identity in most families.
        stem_tap: (channels, reduction) of the stem.
        stage_taps: (channels, reduction, ``preact``) of each stage; see `StageInfo`.
        num_features: Channels of the last map, which is the length of the embedding.
        num_classes: Number of logits; with 0 the network gives the embedding.
        in_chans: Channels of the images.
        drop_rate: Dropout before the classifier, in [0, 1); the protocol has none.

    Attributes:
        feature_info: One `StageInfo` a stage.
        stem_info: The stem's tap.

    Raises:
        ValueError: if an argument is out of range.
    """

    first_conv: ClassVar[str] = "stem.conv"
    num_stages: ClassVar[int]

    def __init__(
        self,
        stem: nn.Module,
        stages: Iterable[nn.Module],
        neck: nn.Module,
        *,
        stem_tap: tuple[int, int],
        stage_taps: Iterable[tuple[int, int, str]],
        num_features: int,
        num_classes: int,
        in_chans: int,
        drop_rate: float,
    ) -> None:
        super().__init__()
        if not 0 <= drop_rate < 1:
            raise ValueError(f"drop_rate must be in [0, 1), got {drop_rate}")
        self.in_chans, self.num_features, self.head_hidden_size = in_chans, num_features, num_features
        self.stem_info: StemInfo = {"num_chs": stem_tap[0], "reduction": stem_tap[1], "module": "stem"}
        self.feature_info: list[StageInfo] = [
            {"num_chs": num_chs, "reduction": reduction, "module": f"stages.{i}", "preact": preact}
            for i, (num_chs, reduction, preact) in enumerate(stage_taps)
        ]
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.neck = neck
        self.global_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes)

    def init_classifier_(self, fc: nn.Linear) -> None:
        """Initialise a new classifier in place; torch's own initialisation stays unless a family overrides this."""

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a fresh one.

        Args:
            num_classes: Number of logits; with 0 the network gives the embedding.

        Raises:
            ValueError: if ``num_classes`` is negative.
        """
        if num_classes < 0:
            raise ValueError(f"num_classes must be >= 0, got {num_classes}")
        self.num_classes = num_classes
        self.fc: nn.Module = nn.Identity()
        if num_classes > 0:
            self.fc = nn.Linear(self.num_features, num_classes)
            self.init_classifier_(self.fc)

    def get_classifier(self) -> nn.Module:
        """The linear classifier, or the identity where ``num_classes`` is 0."""
        return self.fc

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``[N, in_chans, H, W]`` to the last map ``[N, num_features, h, w]``."""
        out: Tensor = self.neck(self.stages(self.stem(x)))
        return out

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map to logits ``[N, num_classes]``, or to the embedding ``[N, num_features]``.

        Args:
            x: The last map, ``[N, num_features, h, w]``.
            pre_logits: Give the embedding, the classifier's input.
        """
        out: Tensor = self.head_drop(self.global_pool(x))
        return out if pre_logits else self.fc(out)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, in_chans, H, W]`` to logits ``[N, num_classes]``."""
        return self.forward_head(self.forward_features(x))
