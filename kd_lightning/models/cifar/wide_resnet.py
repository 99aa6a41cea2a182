"""Wide residual networks WRN-d-k for 32x32 images, with pre-activation blocks."""

from collections import OrderedDict
from typing import Any, ClassVar, final

from timm.models import register_model
from torch import Tensor, nn

from kd_lightning.models.cifar.build import build, default_cfgs_of
from kd_lightning.models.cifar.layers import conv1x1, conv3x3, init_he_, positive
from kd_lightning.models.cifar.network import CifarNetwork

STEM = 16
STRIDES = (1, 2, 2)
VARIANTS = ((16, 1), (16, 2), (28, 2), (40, 1), (40, 2))


@final
class WideBlock(nn.Module):
    """Twice batch normalisation, ReLU and 3x3 convolution, and a shortcut.

    Where the number of channels changes, the shortcut is a 1x1 convolution of the *activated* input, as in the authors'
    code; elsewhere it is the raw input.

    Args:
        in_chs: Channels of the input.
        out_chs: Channels of the output.
        stride: Of the first convolution and the shortcut.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_chs)
        self.act1 = nn.ReLU()
        self.conv1 = conv3x3(in_chs, out_chs, stride)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.act2 = nn.ReLU()
        self.conv2 = conv3x3(out_chs, out_chs)
        self.shortcut = None if in_chs == out_chs else conv1x1(in_chs, out_chs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_chs, H, W]`` to ``[N, out_chs, H / stride, W / stride]``."""
        active = self.act1(self.bn1(x))
        residual = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.conv2(self.act2(self.bn2(self.conv1(active)))) + residual
        return out


@final
class CifarWideResNet(CifarNetwork):
    """WRN-d-k: three groups of pre-activation blocks with 16k, 32k and 64k channels.

    Taps on 32x32 images:

    - ``stem``: 16 channels, 32x32, the bare convolution
    - ``stages.0``, ``.1``, ``.2``: 16k at 32x32, 32k at 16x16, 64k at 8x8, the sum that the group's last block gives,
      which no activation follows. "Before the ReLU" is, as in the protocol, that sum after the next batch
      normalisation: the input of the next group's first ``act1``, and of ``neck.act`` after the last group
    - ``neck``: the last batch normalisation and ReLU
    - ``fc``'s input: the embedding, 64k

    Sources: Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016, table 1, without dropout in the blocks;
    Tian et al., "Contrastive Representation Distillation", ICLR 2020, for the taps.
    Convolutions start from He's normal initialisation, the classifier from torch's with bias 0.

    Args:
        depth: 6n + 4, with n blocks a group.
        factor: The widening factor k.
        num_classes: See `CifarNetwork`.
        in_chans: See `CifarNetwork`.
        drop_rate: See `CifarNetwork`.

    Raises:
        ValueError: if an argument is out of range.
    """

    num_stages: ClassVar[int] = 3

    def __init__(
        self, depth: int, factor: int, *, num_classes: int = 100, in_chans: int = 3, drop_rate: float = 0.0
    ) -> None:
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth must be 6n + 4 with n >= 1, got {depth}")
        blocks = (depth - 4) // 6
        widths = (STEM, *(base * positive("factor", factor) for base in (16, 32, 64)))
        preacts = ("stages.1.0.act1", "stages.2.0.act1", "neck.act")
        super().__init__(
            nn.Sequential(OrderedDict(conv=conv3x3(positive("in_chans", in_chans), STEM))),
            [
                nn.Sequential(
                    WideBlock(in_chs, out_chs, stride), *(WideBlock(out_chs, out_chs, 1) for _ in range(blocks - 1))
                )
                for in_chs, out_chs, stride in zip(widths[:3], widths[1:], STRIDES, strict=True)
            ],
            nn.Sequential(OrderedDict(bn=nn.BatchNorm2d(widths[3]), act=nn.ReLU())),
            stem_tap=(STEM, 1),
            stage_taps=[(widths[i + 1], 2**i, preacts[i]) for i in range(3)],
            num_features=widths[3],
            num_classes=num_classes,
            in_chans=in_chans,
            drop_rate=drop_rate,
        )
        init_he_(self)

    def init_classifier_(self, fc: nn.Linear) -> None:
        """Bias 0, weights as torch draws them."""
        nn.init.zeros_(fc.bias)


default_cfgs = default_cfgs_of(CifarWideResNet, [f"cifar_wrn_{depth}_{factor}" for depth, factor in VARIANTS])


@register_model
def cifar_wrn_16_1(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WRN-16-1, 0.18 M parameters."""
    return build(CifarWideResNet, "cifar_wrn_16_1", pretrained, kwargs, depth=16, factor=1)


@register_model
def cifar_wrn_16_2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WRN-16-2, 0.70 M parameters."""
    return build(CifarWideResNet, "cifar_wrn_16_2", pretrained, kwargs, depth=16, factor=2)


@register_model
def cifar_wrn_28_2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WRN-28-2, 1.48 M parameters."""
    return build(CifarWideResNet, "cifar_wrn_28_2", pretrained, kwargs, depth=28, factor=2)


@register_model
def cifar_wrn_40_1(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WRN-40-1, 0.57 M parameters."""
    return build(CifarWideResNet, "cifar_wrn_40_1", pretrained, kwargs, depth=40, factor=1)


@register_model
def cifar_wrn_40_2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WRN-40-2, 2.26 M parameters."""
    return build(CifarWideResNet, "cifar_wrn_40_2", pretrained, kwargs, depth=40, factor=2)
