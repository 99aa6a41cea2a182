"""MobileNetV2 of half width for 32x32 images."""

from typing import Any, ClassVar, final

from timm.models import register_model
from torch import Tensor, nn

from kd_lightning.models.cifar.build import build, default_cfgs_of
from kd_lightning.models.cifar.layers import conv1x1, conv3x3, conv_bn_act, init_he_, positive
from kd_lightning.models.cifar.network import CifarNetwork

STEM = 16
EMBEDDING = 1280
# (expansion, channels, blocks, stride of the first) of each row of the paper's table 2 at width 0.5, by tapped stage.
# The protocol's second row has stride 1 where the paper has 2; its stem keeps the paper's stride 2 on 32x32 images too.
STAGES = (
    ((1, 8, 1, 1), (6, 12, 2, 1)),
    ((6, 16, 3, 2),),
    ((6, 32, 4, 2), (6, 48, 3, 1)),
    ((6, 80, 3, 2), (6, 160, 1, 1)),
)


@final
class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise convolution and linear 1x1 projection, with a shortcut where shapes agree.

    The input of ``act`` is the block's value; it is an identity, because the bottleneck is linear.

    Args:
        in_chs: Channels of the input.
        out_chs: Channels of the output.
        stride: Of the depthwise convolution.
        expansion: Channels of the depthwise convolution over ``in_chs``; the 1x1 expansion is there for 1 too.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int, expansion: int) -> None:
        super().__init__()
        mid_chs = expansion * in_chs
        self.expand = conv_bn_act(conv1x1(in_chs, mid_chs))
        self.depthwise = conv_bn_act(conv3x3(mid_chs, mid_chs, stride, groups=mid_chs))
        self.project = conv1x1(mid_chs, out_chs)
        self.bn = nn.BatchNorm2d(out_chs)
        self.residual = stride == 1 and in_chs == out_chs
        self.act = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_chs, H, W]`` to ``[N, out_chs, H / stride, W / stride]``."""
        out: Tensor = self.bn(self.project(self.depthwise(self.expand(x))))
        out = self.act(x + out if self.residual else out)
        return out


@final
class CifarMobileNetV2(CifarNetwork):
    """MobileNetV2 with width 0.5 and expansion 6.

    Taps on 32x32 images:

    - ``stem``: 16 channels, 16x16, after the ReLU
    - ``stages.0`` … ``.3``: 12 at 16x16, 16 at 8x8, 48 at 4x4, 160 at 2x2 (of the paper's seven rows of bottlenecks the
      second, third, fifth and seventh). They are linear: the stage's value is its value before an activation, and the
      input of the last block's ``act``
    - ``neck``: the 1x1 convolution to 1280 channels, after the ReLU
    - ``fc``'s input: the embedding, 1280

    Sources: Sandler et al., "MobileNetV2", CVPR 2018, table 2; Tian et al., "Contrastive Representation Distillation",
    ICLR 2020, for the strides, ReLU in place of ReLU6, the channels (not rounded to multiples of 8) and the taps.
    Convolutions start from He's normal initialisation, the classifier from N(0, 0.01^2) with bias 0.

    Args:
        num_classes: See `CifarNetwork`.
        in_chans: See `CifarNetwork`.
        drop_rate: See `CifarNetwork`.

    Raises:
        ValueError: if an argument is out of range.
    """

    num_stages: ClassVar[int] = 4

    def __init__(self, *, num_classes: int = 100, in_chans: int = 3, drop_rate: float = 0.0) -> None:
        stages, taps, in_chs, reduction = [], [], STEM, 2
        for i, rows in enumerate(STAGES):
            blocks = []
            for expansion, out_chs, count, stride in rows:
                for n in range(count):
                    blocks.append(InvertedResidual(in_chs, out_chs, stride if n == 0 else 1, expansion))
                    in_chs = out_chs
                reduction *= stride
            stages.append(nn.Sequential(*blocks))
            taps.append((in_chs, reduction, f"stages.{i}.{len(blocks) - 1}.act"))
        super().__init__(
            conv_bn_act(conv3x3(positive("in_chans", in_chans), STEM, stride=2)),
            stages,
            conv_bn_act(conv1x1(in_chs, EMBEDDING)),
            stem_tap=(STEM, 2),
            stage_taps=taps,
            num_features=EMBEDDING,
            num_classes=num_classes,
            in_chans=in_chans,
            drop_rate=drop_rate,
        )
        init_he_(self)

    def init_classifier_(self, fc: nn.Linear) -> None:
        """Weights from N(0, 0.01^2), bias 0."""
        nn.init.normal_(fc.weight, std=0.01)
        nn.init.zeros_(fc.bias)


default_cfgs = default_cfgs_of(CifarMobileNetV2, ["cifar_mobilenetv2"])


@register_model
def cifar_mobilenetv2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 of half width, 0.81 M parameters."""
    return build(CifarMobileNetV2, "cifar_mobilenetv2", pretrained, kwargs)
