"""ResNet-50 for 32x32 images: bottleneck blocks behind a 3x3 stem."""

from typing import Any, ClassVar, final

from timm.models import register_model
from torch import Tensor, nn

from kd_lightning.models.cifar.build import build, default_cfgs_of
from kd_lightning.models.cifar.layers import conv1x1, conv3x3, conv_bn_act, init_he_, positive
from kd_lightning.models.cifar.network import CifarNetwork
from kd_lightning.models.cifar.resnet import projection

STEM = 64
EXPANSION = 4
MIDS = (64, 128, 256, 512)
BLOCKS = (3, 4, 6, 3)


@final
class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the input of ``act3`` is their sum.

    Args:
        in_chs: Channels of the input.
        mid_chs: Channels of the 3x3 convolution; the output has 4 times as many.
        stride: Of the 3x3 convolution and the shortcut.
    """

    def __init__(self, in_chs: int, mid_chs: int, stride: int) -> None:
        super().__init__()
        out_chs = EXPANSION * mid_chs
        self.conv1 = conv1x1(in_chs, mid_chs)
        self.bn1 = nn.BatchNorm2d(mid_chs)
        self.act1 = nn.ReLU()
        self.conv2 = conv3x3(mid_chs, mid_chs, stride)
        self.bn2 = nn.BatchNorm2d(mid_chs)
        self.act2 = nn.ReLU()
        self.conv3 = conv1x1(mid_chs, out_chs)
        self.bn3 = nn.BatchNorm2d(out_chs)
        self.shortcut = projection(in_chs, out_chs, stride)
        self.act3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_chs, H, W]`` to ``[N, 4 * mid_chs, H / stride, W / stride]``."""
        out: Tensor = self.act1(self.bn1(self.conv1(x)))
        out = self.act2(self.bn2(self.conv2(out)))
        out = self.act3(self.bn3(self.conv3(out)) + self.shortcut(x))
        return out


@final
class CifarResNet50(CifarNetwork):
    """ResNet-50 with a 3x3 stem of stride 1 and no max pooling.

    Taps on 32x32 images:

    - ``stem``: 64 channels, 32x32, after the ReLU
    - ``stages.0`` … ``.3``: 256 at 32x32, 512 at 16x16, 1024 at 8x8, 2048 at 4x4, after the last block's ReLU; before
      it is the input of that block's ``act3``
    - ``fc``'s input: the embedding, 2048

    Sources: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1, with the stride in the 3x3
    convolution; Tian et al., "Contrastive Representation Distillation", ICLR 2020, for stem and taps.
    Convolutions start from He's normal initialisation, the classifier from torch's.

    Args:
        num_classes: See `CifarNetwork`.
        in_chans: See `CifarNetwork`.
        drop_rate: See `CifarNetwork`.

    Raises:
        ValueError: if an argument is out of range.
    """

    num_stages: ClassVar[int] = 4

    def __init__(self, *, num_classes: int = 100, in_chans: int = 3, drop_rate: float = 0.0) -> None:
        stages, in_chs = [], STEM
        for i, (mid_chs, blocks) in enumerate(zip(MIDS, BLOCKS, strict=True)):
            out_chs = EXPANSION * mid_chs
            first = Bottleneck(in_chs, mid_chs, stride=1 if i == 0 else 2)
            stages.append(nn.Sequential(first, *(Bottleneck(out_chs, mid_chs, 1) for _ in range(blocks - 1))))
            in_chs = out_chs
        super().__init__(
            conv_bn_act(conv3x3(positive("in_chans", in_chans), STEM)),
            stages,
            nn.Identity(),
            stem_tap=(STEM, 1),
            stage_taps=[(EXPANSION * MIDS[i], 2**i, f"stages.{i}.{BLOCKS[i] - 1}.act3") for i in range(len(MIDS))],
            num_features=in_chs,
            num_classes=num_classes,
            in_chans=in_chans,
            drop_rate=drop_rate,
        )
        init_he_(self)


default_cfgs = default_cfgs_of(CifarResNet50, ["cifar_resnet50"])


@register_model
def cifar_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50, 23.7 M parameters."""
    return build(CifarResNet50, "cifar_resnet50", pretrained, kwargs)
