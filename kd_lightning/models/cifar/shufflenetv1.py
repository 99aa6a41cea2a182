"""ShuffleNetV1 with 3 groups for 32x32 images."""

from typing import Any, ClassVar, final

import torch
from timm.models import register_model
from torch import Tensor, nn

from kd_lightning.models.cifar.build import build, default_cfgs_of
from kd_lightning.models.cifar.layers import channel_shuffle, conv1x1, conv3x3, conv_bn_act, positive
from kd_lightning.models.cifar.network import CifarNetwork

STEM = 24
GROUPS = 3
WIDTHS = (240, 480, 960)
BLOCKS = (4, 8, 4)


@final
class ShuffleUnit(nn.Module):
    """1x1 group convolution, shuffle, 3x3 depthwise and 1x1 group convolution, beside a shortcut.

    With stride 2 the shortcut is average-pooled and concatenated behind, else it is added; the input of ``act3`` is the
    result.

    Args:
        in_chs: Channels of the input.
        out_chs: Channels of the output.
        stride: Of the depthwise convolution, 1 or 2.
        first_groups: Groups of the first 1x1 convolution.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int, first_groups: int) -> None:
        super().__init__()
        branch_chs = out_chs - in_chs if stride == 2 else out_chs
        mid_chs = branch_chs // 4
        self.first_groups = first_groups
        self.conv1 = conv1x1(in_chs, mid_chs, groups=first_groups)
        self.bn1 = nn.BatchNorm2d(mid_chs)
        self.act1 = nn.ReLU()
        self.conv2 = conv3x3(mid_chs, mid_chs, stride, groups=mid_chs)
        self.bn2 = nn.BatchNorm2d(mid_chs)
        self.act2 = nn.ReLU()
        self.conv3 = conv1x1(mid_chs, branch_chs, groups=GROUPS)
        self.bn3 = nn.BatchNorm2d(branch_chs)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.act3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_chs, H, W]`` to ``[N, out_chs, H / stride, W / stride]``."""
        out: Tensor = self.act1(self.bn1(self.conv1(x)))
        out = channel_shuffle(out, self.first_groups)
        out = self.act2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = out + x if self.pool is None else torch.cat([out, self.pool(x)], dim=1)
        out = self.act3(out)
        return out


@final
class CifarShuffleNetV1(CifarNetwork):
    """ShuffleNet 1x with 3 groups, a 1x1 stem of stride 1 and no max pooling.

    Taps on 32x32 images:

    - ``stem``: 24 channels, 32x32, after the ReLU
    - ``stages.0``, ``.1``, ``.2``: 240 at 16x16, 480 at 8x8, 960 at 4x4, after the last unit's ReLU; before it is the
      input of that unit's ``act3``
    - ``fc``'s input: the embedding, 960

    Sources: Zhang et al., "ShuffleNet", CVPR 2018, table 1; Tian et al., "Contrastive Representation Distillation",
    ICLR 2020, for the stem, the ReLU after the depthwise convolution and the taps. All layers start from torch's
    initialisation, as there.

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
            # The very first 1x1 convolution has too few input channels to be grouped (section 3.2).
            first = ShuffleUnit(in_chs, out_chs, 2, first_groups=1 if in_chs == STEM else GROUPS)
            stages.append(nn.Sequential(first, *(ShuffleUnit(out_chs, out_chs, 1, GROUPS) for _ in range(blocks - 1))))
            in_chs = out_chs
        super().__init__(
            conv_bn_act(conv1x1(positive("in_chans", in_chans), STEM)),
            stages,
            nn.Identity(),
            stem_tap=(STEM, 1),
            stage_taps=[(WIDTHS[i], 2 ** (i + 1), f"stages.{i}.{BLOCKS[i] - 1}.act3") for i in range(len(WIDTHS))],
            num_features=in_chs,
            num_classes=num_classes,
            in_chans=in_chans,
            drop_rate=drop_rate,
        )


default_cfgs = default_cfgs_of(CifarShuffleNetV1, ["cifar_shufflenetv1"])


@register_model
def cifar_shufflenetv1(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ShuffleNetV1 1x with 3 groups, 0.95 M parameters."""
    return build(CifarShuffleNetV1, "cifar_shufflenetv1", pretrained, kwargs)
