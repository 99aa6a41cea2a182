"""ResNets of depth 6n + 2 for 32x32 images: resnet8 … resnet110, and the 4 times wider resnet8x4, resnet32x4."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar, final

from timm.models import register_model
from torch import Tensor, nn

from kd_lightning.models.cifar.build import build, default_cfgs_of
from kd_lightning.models.cifar.layers import conv1x1, conv3x3, conv_bn_act, init_he_, positive
from kd_lightning.models.cifar.network import CifarNetwork

WIDTHS = (16, 16, 32, 64)
WIDTHS_X4 = (32, 64, 128, 256)
STRIDES = (1, 2, 2)
DEPTHS = (8, 14, 20, 32, 44, 56, 110)
DEPTHS_X4 = (8, 32)


def projection(in_chs: int, out_chs: int, stride: int) -> nn.Module:
    """The shortcut around a block: the identity where shapes agree, else 1x1 convolution and batch normalisation.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 3.3, option B.
    """
    if stride == 1 and in_chs == out_chs:
        return nn.Identity()
    return nn.Sequential(OrderedDict(conv=conv1x1(in_chs, out_chs, stride), bn=nn.BatchNorm2d(out_chs)))


@final
class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the input of ``act2`` is their sum.

    Args:
        in_chs: Channels of the input.
        out_chs: Channels of the output.
        stride: Of the first convolution and the shortcut.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_chs, out_chs, stride)
        self.bn1 = nn.BatchNorm2d(out_chs)
        self.act1 = nn.ReLU()
        self.conv2 = conv3x3(out_chs, out_chs)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.shortcut = projection(in_chs, out_chs, stride)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_chs, H, W]`` to ``[N, out_chs, H / stride, W / stride]``."""
        out: Tensor = self.act1(self.bn1(self.conv1(x)))
        out = self.act2(self.bn2(self.conv2(out)) + self.shortcut(x))
        return out


@final
class CifarResNet(CifarNetwork):
    """A ResNet with three stages of basic blocks and projection shortcuts.

    Taps on 32x32 images, with widths (w0, w1, w2, w3):

    - ``stem``: w0 channels, 32x32, after the ReLU
    - ``stages.0``, ``.1``, ``.2``: w1 at 32x32, w2 at 16x16, w3 at 8x8, after the last block's ReLU; before it is the
      input of that block's ``act2``
    - ``fc``'s input: the embedding, w3

    Sources: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2, but for the shortcuts;
    Tian et al., "Contrastive Representation Distillation", ICLR 2020, for those, the widths and the taps.
    Convolutions start from He's normal initialisation, the classifier from torch's.

    Args:
        depth: Convolutions and classifier in the longest path, 6n + 2.
        widths: Channels of stem and stages.
        num_classes: See `CifarNetwork`.
        in_chans: See `CifarNetwork`.
        drop_rate: See `CifarNetwork`.

    Raises:
        ValueError: if an argument is out of range.
    """

    num_stages: ClassVar[int] = 3

    def __init__(
        self,
        depth: int,
        widths: Sequence[int] = WIDTHS,
        *,
        num_classes: int = 100,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth must be 6n + 2 with n >= 1, got {depth}")
        if len(widths) != 4 or min(widths) < 1:
            raise ValueError(f"widths must be 4 positive numbers, of the stem and 3 stages, got {widths}")
        blocks = (depth - 2) // 6
        super().__init__(
            conv_bn_act(conv3x3(positive("in_chans", in_chans), widths[0])),
            [
                nn.Sequential(
                    BasicBlock(in_chs, out_chs, stride), *(BasicBlock(out_chs, out_chs, 1) for _ in range(blocks - 1))
                )
                for in_chs, out_chs, stride in zip(widths[:3], widths[1:], STRIDES, strict=True)
            ],
            nn.Identity(),
            stem_tap=(widths[0], 1),
            stage_taps=[(widths[i + 1], 2**i, f"stages.{i}.{blocks - 1}.act2") for i in range(3)],
            num_features=widths[3],
            num_classes=num_classes,
            in_chans=in_chans,
            drop_rate=drop_rate,
        )
        init_he_(self)


default_cfgs = default_cfgs_of(
    CifarResNet, [f"cifar_resnet{depth}" for depth in DEPTHS] + [f"cifar_resnet{depth}x4" for depth in DEPTHS_X4]
)


@register_model
def cifar_resnet8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-8, widths 16-16-32-64, 0.08 M parameters."""
    return build(CifarResNet, "cifar_resnet8", pretrained, kwargs, depth=8)


@register_model
def cifar_resnet14(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-14, widths 16-16-32-64, 0.18 M parameters."""
    return build(CifarResNet, "cifar_resnet14", pretrained, kwargs, depth=14)


@register_model
def cifar_resnet20(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-20, widths 16-16-32-64, 0.28 M parameters."""
    return build(CifarResNet, "cifar_resnet20", pretrained, kwargs, depth=20)


@register_model
def cifar_resnet32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-32, widths 16-16-32-64, 0.47 M parameters."""
    return build(CifarResNet, "cifar_resnet32", pretrained, kwargs, depth=32)


@register_model
def cifar_resnet44(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-44, widths 16-16-32-64, 0.67 M parameters."""
    return build(CifarResNet, "cifar_resnet44", pretrained, kwargs, depth=44)


@register_model
def cifar_resnet56(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-56, widths 16-16-32-64, 0.86 M parameters."""
    return build(CifarResNet, "cifar_resnet56", pretrained, kwargs, depth=56)


@register_model
def cifar_resnet110(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-110, widths 16-16-32-64, 1.74 M parameters."""
    return build(CifarResNet, "cifar_resnet110", pretrained, kwargs, depth=110)


@register_model
def cifar_resnet8x4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-8, widths 32-64-128-256, 1.23 M parameters."""
    return build(CifarResNet, "cifar_resnet8x4", pretrained, {"widths": WIDTHS_X4, **kwargs}, depth=8)


@register_model
def cifar_resnet32x4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-32, widths 32-64-128-256, 7.43 M parameters."""
    return build(CifarResNet, "cifar_resnet32x4", pretrained, {"widths": WIDTHS_X4, **kwargs}, depth=32)
