"""VGG networks with batch normalisation for 32x32 images: vgg8 and vgg13."""

from typing import Any, ClassVar, final

from timm.models import register_model
from torch import nn

from kd_lightning.models.cifar.build import build, default_cfgs_of
from kd_lightning.models.cifar.layers import conv_bn_act, init_he_, positive
from kd_lightning.models.cifar.network import CifarNetwork

WIDTHS = (64, 128, 256, 512, 512)
REDUCTIONS = (1, 2, 4, 8, 8)


def convolutions(in_chs: int, out_chs: int, count: int) -> list[nn.Module]:
    """``count`` times 3x3 convolution with bias, batch normalisation and ReLU."""
    return [conv_bn_act(nn.Conv2d(out_chs if i else in_chs, out_chs, 3, padding=1)) for i in range(count)]


@final
class CifarVGG(CifarNetwork):
    """Five groups of 3x3 convolutions, max pooling before the second, third and fourth, one linear classifier.

    Taps on 32x32 images:

    - ``stem``: the first group, 64 channels, 32x32, after the ReLU
    - ``stages.0`` … ``.3``: 128 at 16x16, 256 at 8x8, 512 at 4x4, 512 at 4x4, after the group's last ReLU and before
      the next pooling; before the ReLU is the input of the group's last ``act``
    - ``fc``'s input: the embedding, 512

    Sources: Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015;
    Tian et al., "Contrastive Representation Distillation", ICLR 2020, for the batch normalisation, the missing fully
    connected layers and the taps. That protocol pools a fourth time where images are 64x64; this one does not.
    Convolutions start from He's normal initialisation, the classifier from N(0, 0.01^2); biases from 0.

    Args:
        convs: Convolutions in each group.
        num_classes: See `CifarNetwork`.
        in_chans: See `CifarNetwork`.
        drop_rate: See `CifarNetwork`.

    Raises:
        ValueError: if an argument is out of range.
    """

    first_conv: ClassVar[str] = "stem.0.conv"
    num_stages: ClassVar[int] = 4

    def __init__(self, convs: int, *, num_classes: int = 100, in_chans: int = 3, drop_rate: float = 0.0) -> None:
        convs = positive("convs", convs)
        stages, preacts = [], []
        for i in range(1, len(WIDTHS)):
            pools = [nn.MaxPool2d(2)] if REDUCTIONS[i] > REDUCTIONS[i - 1] else []
            preacts.append(f"stages.{i - 1}.{len(pools) + convs - 1}.act")
            stages.append(nn.Sequential(*pools, *convolutions(WIDTHS[i - 1], WIDTHS[i], convs)))
        super().__init__(
            nn.Sequential(*convolutions(positive("in_chans", in_chans), WIDTHS[0], convs)),
            stages,
            nn.Identity(),
            stem_tap=(WIDTHS[0], REDUCTIONS[0]),
            stage_taps=zip(WIDTHS[1:], REDUCTIONS[1:], preacts, strict=True),
            num_features=WIDTHS[-1],
            num_classes=num_classes,
            in_chans=in_chans,
            drop_rate=drop_rate,
        )
        init_he_(self)

    def init_classifier_(self, fc: nn.Linear) -> None:
        """Weights from N(0, 0.01^2), bias 0."""
        nn.init.normal_(fc.weight, std=0.01)
        nn.init.zeros_(fc.bias)


default_cfgs = default_cfgs_of(CifarVGG, ["cifar_vgg8", "cifar_vgg13"])


@register_model
def cifar_vgg8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VGG with 5 convolutions and batch normalisation, 3.97 M parameters."""
    return build(CifarVGG, "cifar_vgg8", pretrained, kwargs, convs=1)


@register_model
def cifar_vgg13(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VGG with 10 convolutions and batch normalisation, 9.46 M parameters."""
    return build(CifarVGG, "cifar_vgg13", pretrained, kwargs, convs=2)
