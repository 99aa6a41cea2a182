"""Parameters and multiply-adds, derived by hand from the papers' tables, layer by layer."""

from collections.abc import Iterator

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import kd_lightning.models.cifar  # noqa: F401 (registers the networks)

Cost = tuple[int, int]  # parameters, multiply-adds


def conv(kernel: int, in_chs: int, out_chs: int, side: int, groups: int = 1, bias: bool = False) -> Cost:
    """A convolution that gives side x side maps, and the batch normalisation of its output."""
    weights = kernel * kernel * (in_chs // groups) * out_chs
    return weights + (out_chs if bias else 0) + 2 * out_chs, weights * side * side


def bare(kernel: int, in_chs: int, out_chs: int, side: int) -> Cost:
    weights = kernel * kernel * in_chs * out_chs
    return weights, weights * side * side


def norm(chs: int) -> Cost:
    return 2 * chs, 0


def linear(in_features: int, out_features: int = 100) -> Cost:
    return in_features * out_features + out_features, in_features * out_features


def resnet(blocks: int, w0: int, w1: int, w2: int, w3: int) -> Iterator[Cost]:
    """He et al. 2016, section 4.2, with option B where a stage changes the number of channels."""
    yield conv(3, 3, w0, 32)
    for before, width, side in ((w0, w1, 32), (w1, w2, 16), (w2, w3, 8)):
        yield conv(3, before, width, side)
        yield from [conv(3, width, width, side)] * (2 * blocks - 1)
        if before != width:
            yield conv(1, before, width, side)
    yield linear(w3)


def wide_resnet(blocks: int, k: int) -> Iterator[Cost]:
    """Zagoruyko & Komodakis 2016, table 1: a normalisation before each convolution of a block."""
    yield bare(3, 3, 16, 32)
    for before, width, side in ((16, 16 * k, 32), (16 * k, 32 * k, 16), (32 * k, 64 * k, 8)):
        yield from (norm(before), bare(3, before, width, side))
        yield from [norm(width), bare(3, width, width, side)] * (2 * blocks - 1)
        if before != width:
            yield bare(1, before, width, side)
    yield from (norm(64 * k), linear(64 * k))


def vgg(convs: int) -> Iterator[Cost]:
    """Simonyan & Zisserman 2015, without the fully connected layers."""
    for before, width, side in ((3, 64, 32), (64, 128, 16), (128, 256, 8), (256, 512, 4), (512, 512, 4)):
        yield conv(3, before, width, side, bias=True)
        yield from [conv(3, width, width, side, bias=True)] * (convs - 1)
    yield linear(512)


def mobilenetv2() -> Iterator[Cost]:
    """Sandler et al. 2018, table 2, every number of channels halved."""
    yield conv(3, 3, 16, 16)
    for t, before, width, blocks, side_in, side in (
        (1, 16, 8, 1, 16, 16),
        (6, 8, 12, 2, 16, 16),
        (6, 12, 16, 3, 16, 8),
        (6, 16, 32, 4, 8, 4),
        (6, 32, 48, 3, 4, 4),
        (6, 48, 80, 3, 4, 2),
        (6, 80, 160, 1, 2, 2),
    ):
        for i in range(blocks):
            chs, from_side = (before, side_in) if i == 0 else (width, side)
            yield conv(1, chs, t * chs, from_side)
            yield conv(3, t * chs, t * chs, side, groups=t * chs)
            yield conv(1, t * chs, width, side)
    yield from (conv(1, 160, 1280, 2), linear(1280))


def shufflenetv1() -> Iterator[Cost]:
    """Zhang et al. 2018, table 1, 3 groups; a unit with stride 2 computes what concatenation leaves to it."""
    yield conv(1, 3, 24, 32)
    for before, width, blocks, side in ((24, 240, 4, 16), (240, 480, 8, 8), (480, 960, 4, 4)):
        new = width - before
        yield conv(1, before, new // 4, 2 * side, groups=1 if before == 24 else 3)
        yield conv(3, new // 4, new // 4, side, groups=new // 4)
        yield conv(1, new // 4, new, side, groups=3)
        for _ in range(blocks - 1):
            yield conv(1, width, width // 4, side, groups=3)
            yield conv(3, width // 4, width // 4, side, groups=width // 4)
            yield conv(1, width // 4, width, side, groups=3)
    yield linear(960)


def shufflenetv2() -> Iterator[Cost]:
    """Ma et al. 2018, table 5, 1x, and figure 3c, d."""
    yield conv(1, 3, 24, 32)
    for before, width, blocks, side in ((24, 116, 4, 16), (116, 232, 8, 8), (232, 464, 4, 4)):
        half = width // 2
        yield from (conv(3, before, before, side, groups=before), conv(1, before, half, side))
        yield from (conv(1, before, half, 2 * side), conv(3, half, half, side, groups=half), conv(1, half, half, side))
        unit = [conv(1, half, half, side), conv(3, half, half, side, groups=half), conv(1, half, half, side)]
        yield from unit * (blocks - 1)
    yield from (conv(1, 464, 1024, 4), linear(1024))


def resnet50() -> Iterator[Cost]:
    """He et al. 2016, table 1, stride in the 3x3 convolution, option B in the first block of every stage."""
    yield conv(3, 3, 64, 32)
    for before, mid, blocks, side_in, side in ((64, 64, 3, 32, 32), (256, 128, 4, 32, 16), (512, 256, 6, 16, 8)):
        yield from bottlenecks(before, mid, blocks, side_in, side)
    yield from bottlenecks(1024, 512, 3, 8, 4)
    yield linear(2048)


def bottlenecks(before: int, mid: int, blocks: int, side_in: int, side: int) -> list[Cost]:
    first = [conv(1, before, mid, side_in), conv(3, mid, mid, side), conv(1, mid, 4 * mid, side)]
    rest = [conv(1, 4 * mid, mid, side), conv(3, mid, mid, side), conv(1, mid, 4 * mid, side)]
    return [*first, conv(1, before, 4 * mid, side), *rest * (blocks - 1)]


# Millions of multiply-adds and where that figure stands: "models" is the table of CIFAR-100 models of the
# pytorch-cifar-models project, which counts convolutions and the classifier; the others have none for 32x32 images.
BUDGETS: dict[str, tuple[Iterator[Cost], float | None]] = {
    "cifar_resnet8": (resnet(1, 16, 16, 32, 64), None),
    "cifar_resnet14": (resnet(2, 16, 16, 32, 64), None),
    "cifar_resnet20": (resnet(3, 16, 16, 32, 64), 40.82),  # models
    "cifar_resnet32": (resnet(5, 16, 16, 32, 64), 69.13),  # models
    "cifar_resnet44": (resnet(7, 16, 16, 32, 64), 97.44),  # models
    "cifar_resnet56": (resnet(9, 16, 16, 32, 64), 125.75),  # models
    "cifar_resnet110": (resnet(18, 16, 16, 32, 64), None),
    "cifar_resnet8x4": (resnet(1, 32, 64, 128, 256), None),
    "cifar_resnet32x4": (resnet(5, 32, 64, 128, 256), None),
    "cifar_wrn_16_1": (wide_resnet(2, 1), None),
    "cifar_wrn_16_2": (wide_resnet(2, 2), None),
    "cifar_wrn_28_2": (wide_resnet(4, 2), None),
    "cifar_wrn_40_1": (wide_resnet(6, 1), None),
    "cifar_wrn_40_2": (wide_resnet(6, 2), None),
    "cifar_vgg8": (vgg(1), None),
    "cifar_vgg13": (vgg(2), None),
    "cifar_mobilenetv2": (mobilenetv2(), None),
    "cifar_shufflenetv1": (shufflenetv1(), None),
    # models: 45.09 with a 3x3 stem, whose 8 further taps cost 8 * 3 * 24 * 32^2 = 0.59 million
    "cifar_shufflenetv2": (shufflenetv2(), 45.09 - 0.59),
    "cifar_resnet50": (resnet50(), None),
}


def test_every_network_has_a_budget() -> None:
    assert sorted(BUDGETS) == sorted(timm.list_models("cifar_*"))


@pytest.mark.parametrize("name", BUDGETS)
def test_parameters_and_multiply_adds(name: str) -> None:
    layers, published = BUDGETS[name]
    parameters, multiply_adds = (sum(costs) for costs in zip(*layers, strict=True))
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 32, 32))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert counter.get_total_flops() == 2 * multiply_adds
    if published is not None:
        assert multiply_adds / 1e6 == pytest.approx(published, abs=0.006)
