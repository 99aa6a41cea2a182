"""ShuffleNetV2 1x for 32x32 images."""

from typing import Any, ClassVar, final

import torch
from timm.models import register_model
from torch import Tensor, nn

from kd_lightning.models.cifar.build import build, default_cfgs_of
from kd_lightning.models.cifar.layers import channel_shuffle, conv1x1, conv3x3, conv_bn_act, positive
from kd_lightning.models.cifar.network import CifarNetwork

STEM = 24
WIDTHS = (116, 232, 464)
BLOCKS = (4, 8, 4)
EMBEDDING = 1024


def depthwise(chs: int, out_chs: int, stride: int) -> list[nn.Module]:
    """3x3 depthwise and 1x1 convolution, each with batch normalisation, no activation."""
    return [conv3x3(chs, chs, stride, groups=chs), nn.BatchNorm2d(chs), conv1x1(chs, out_chs), nn.BatchNorm2d(out_chs)]


@final
class ShuffleUnit(nn.Module):
    """Two branches, concatenated and shuffled; the input of ``act`` is the result.

    With stride 1 each branch takes half of the channels and the left one is an identity; with stride 2 each takes all.
    The ReLUs at the ends of the branches are one ReLU behind the shuffle: it commutes with the shuffle, and does
    nothing to an identity branch, which is the output of a ReLU already.

    Args:
        in_chs: Channels of the input; equal to ``out_chs`` where the stride is 1.
        out_chs: Channels of the output, even.
        stride: Of the depthwise convolutions, 1 or 2.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        super().__init__()
        half = out_chs // 2
        self.split = stride == 1
        self.left = nn.Identity() if self.split else nn.Sequential(*depthwise(in_chs, half, stride))
        self.right = nn.Sequential(
            conv_bn_act(conv1x1(half if self.split else in_chs, half)), *depthwise(half, half, stride)
        )
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_chs, H, W]`` to ``[N, out_chs, H / stride, W / stride]``."""
        left, right = x.chunk(2, dim=1) if self.split else (x, x)
        out: Tensor = torch.cat([self.left(left), self.right(right)], dim=1)
        out = self.act(channel_shuffle(out, groups=2))
        return out


@final
class CifarShuffleNetV2(CifarNetwork):
    """ShuffleNetV2 1x with a 1x1 stem of stride 1 and no max pooling.

    Taps on 32x32 images:

    - ``stem``: 24 channels, 32x32, after the ReLU
    - ``stages.0``, ``.1``, ``.2``: 116 at 16x16, 232 at 8x8, 464 at 4x4, after the last unit's shuffle and ReLU; before
      the ReLU is the input of that unit's ``act`` (the protocol taps it before the shuffle: the same channels in
      another order)
    - ``neck``: the 1x1 convolution to 1024 channels, after the ReLU
    - ``fc``'s input: the embedding, 1024

    Sources: Ma et al., "ShuffleNet V2", ECCV 2018, table 5; Tian et al., "Contrastive Representation Distillation",
    ICLR 2020, for the stem and the taps. All layers start from torch's initialisation, as there.

    Args:
        num_classes: See `CifarNetwork`.
        in_chans: See `CifarNetwork`.
        drop_rate: See `CifarNetwork`.

    Raises:
        ValueError: if an argument is out of range.
    """

    num_stages: ClassVar[int] = 3

    def __init__(self, *, num_classes: int = 100, in_chans: int = 3, drop_rate: float = 0.0) -> None:
        stages, in_chs = [], STEM
        for out_chs, blocks in zip(WIDTHS, BLOCKS, strict=True):
            first = ShuffleUnit(in_chs, out_chs, stride=2)
            stages.append(nn.Sequential(first, *(ShuffleUnit(out_chs, out_chs, 1) for _ in range(blocks - 1))))
            in_chs = out_chs
        super().__init__(
            conv_bn_act(conv1x1(positive("in_chans", in_chans), STEM)),
            stages,
            conv_bn_act(conv1x1(in_chs, EMBEDDING)),
            stem_tap=(STEM, 1),
            stage_taps=[(WIDTHS[i], 2 ** (i + 1), f"stages.{i}.{BLOCKS[i] - 1}.act") for i in range(len(WIDTHS))],
            num_features=EMBEDDING,
            num_classes=num_classes,
            in_chans=in_chans,
            drop_rate=drop_rate,
        )


default_cfgs = default_cfgs_of(CifarShuffleNetV2, ["cifar_shufflenetv2"])


@register_model
def cifar_shufflenetv2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ShuffleNetV2 1x, 1.36 M parameters."""
    return build(CifarShuffleNetV2, "cifar_shufflenetv2", pretrained, kwargs)
