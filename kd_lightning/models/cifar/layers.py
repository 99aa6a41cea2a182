"""Convolutions, channel shuffle and initialisation that the families share."""

from collections import OrderedDict

from torch import Tensor, nn


def positive(name: str, value: int) -> int:
    """The value of an argument that must be positive.

    Raises:
        ValueError: if it is not.
    """
    if value < 1:
        raise ValueError(f"{name} must be >= 1, got {value}")
    return value


def conv3x3(in_chs: int, out_chs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 3x3 convolution with padding 1, without bias."""
    return nn.Conv2d(in_chs, out_chs, 3, stride=stride, padding=1, groups=groups, bias=False)


def conv1x1(in_chs: int, out_chs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(in_chs, out_chs, 1, stride=stride, groups=groups, bias=False)


def conv_bn_act(conv: nn.Conv2d) -> nn.Sequential:
    """The convolution, batch normalisation and ReLU, as ``conv``, ``bn`` and ``act``."""
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(conv.out_channels), act=nn.ReLU()))


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Channel ``i * (C / groups) + j`` moves to ``j * groups + i``; ``[N, C, H, W]`` to ``[N, C, H, W]``.

    Source: Zhang et al., "ShuffleNet", CVPR 2018, section 3.1.
    """
    n, _, h, w = x.shape
    return x.reshape(n, groups, -1, h, w).transpose(1, 2).reshape(x.shape)


def init_he_(network: nn.Module) -> None:
    """Draw all convolutions from N(0, 2 / (k^2 * out channels)), in place; their biases become 0.

    Source: He et al., "Delving Deep into Rectifiers", ICCV 2015, equation 14 (the backward form, ``fan_out``).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
