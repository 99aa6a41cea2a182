"""The networks compute what other people's, or a plain functional form of the paper, computes with the same weights."""

from collections.abc import Iterable

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from kd_lightning.models.cifar import CifarNetwork
from kd_lightning.models.cifar.mobilenetv2 import InvertedResidual


def scrambled(name: str) -> CifarNetwork:
    """A network in eval mode whose weights and statistics are nowhere at their neutral values."""
    torch.manual_seed(3)
    model = timm.create_model(name)
    assert isinstance(model, CifarNetwork)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
                module.momentum = 1.0
        model(images())  # statistics of data, or the images' differences would die out on the way
    return model.eval()


def images() -> Tensor:
    """Coarse patterns, because random networks hardly tell one fine noise from another."""
    coarse = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(4))
    return F.interpolate(coarse, size=32, mode="bilinear")


def copy_in_order(source: nn.Module | Iterable[nn.Module], target: nn.Module | Iterable[nn.Module]) -> None:
    """Copy parameters and buffers in the order in which the networks define them."""
    ours, theirs = (
        [
            tensor
            for module in ([modules] if isinstance(modules, nn.Module) else modules)
            for tensor in module.state_dict().values()
        ]
        for modules in (source, target)
    )
    assert [tensor.shape for tensor in ours] == [tensor.shape for tensor in theirs]
    for tensor, value in zip(theirs, ours, strict=True):
        tensor.copy_(value)


@torch.no_grad()
def assert_equal_logits(model: nn.Module, reference: nn.Module) -> None:
    x = images()[:4]
    expected = reference.eval()(x)
    tolerance = 1e-4 * expected.abs().max().item()
    assert expected.std(dim=0).min() > 10 * tolerance  # else the images would not matter
    torch.testing.assert_close(model(x), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("depth", [20, 56])
def test_resnet_equals_torchdistills(depth: int) -> None:
    reference = pytest.importorskip("torchdistill.models.classification.resnet")
    other = reference.resnet(depth, num_classes=100, pretrained=False, progress=False)
    model = scrambled(f"cifar_resnet{depth}")
    copy_in_order(model, other)
    assert_equal_logits(model, other)


def test_wide_resnet_equals_torchdistills_with_activated_shortcuts() -> None:
    reference = pytest.importorskip("torchdistill.models.classification.wide_resnet")
    other = reference.wide_resnet(40, 2, 0.0, num_classes=100, pretrained=False, progress=False)
    model = scrambled("cifar_wrn_40_2")
    copy_in_order(model, other)
    # torchdistill's shortcut convolves the raw input; the authors' and the protocol's convolves the activated one.
    for block in other.modules():
        if isinstance(block, reference.WideBasicBlock) and len(block.shortcut):
            block.shortcut = nn.Sequential(block.bn1, nn.ReLU(), *block.shortcut)
    assert_equal_logits(model, other)


def test_resnet50_equals_torchvisions_behind_a_small_stem() -> None:
    other = torchvision.models.resnet50(num_classes=100)
    other.conv1, other.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    model = scrambled("cifar_resnet50")
    copy_in_order(model, other)
    assert_equal_logits(model, other)


@pytest.mark.parametrize(("name", "convs"), [("cifar_vgg8", 1), ("cifar_vgg13", 2)])
def test_vgg_equals_torchvisions_layers(name: str, convs: int) -> None:
    cfg: list[str | int] = []
    for width, pool in ((64, True), (128, True), (256, True), (512, False), (512, False)):
        cfg += [width] * convs + ["M"] * pool
    features = torchvision.models.vgg.make_layers(cfg, batch_norm=True)
    other = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 100))
    model = scrambled(name)
    copy_in_order(model, other)
    assert_equal_logits(model, other)


def test_shufflenetv2_equals_torchvisions_behind_a_small_stem() -> None:
    other = torchvision.models.ShuffleNetV2([4, 8, 4], [24, 116, 232, 464, 1024], num_classes=100)
    other.conv1[0], other.maxpool = nn.Conv2d(3, 24, 1, bias=False), nn.Identity()
    model = scrambled("cifar_shufflenetv2")
    copy_in_order(model, other)
    assert_equal_logits(model, other)


def test_mobilenetv2_equals_torchvisions_with_other_widths() -> None:
    # torchvision has no 1x1 expansion in the first block; the reference keeps ours there.
    settings = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2]]
    settings += [[6, 320, 1, 1]]
    other = torchvision.models.MobileNetV2(100, 0.5, settings, round_nearest=1, dropout=0.0)
    for block in list(other.modules()):
        for key, child in block.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(block, key, nn.ReLU())
    model = scrambled("cifar_mobilenetv2")
    first = model.get_submodule("stages.0.0")
    assert isinstance(first, InvertedResidual)
    assert not first.residual
    other.features[1].conv = nn.Sequential(first.expand, first.depthwise, nn.Sequential(first.project, first.bn))
    copy_in_order(model, other)
    assert_equal_logits(model, other)


class FunctionalShuffleNetV1(nn.Module):
    """Zhang et al. 2018, figure 2b, c, over a state dict's tensors in their order."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.state = [tensor for key, tensor in state.items() if "num_batches" not in key]

    def forward(self, x: Tensor) -> Tensor:
        tensors = iter(self.state)

        def conv_bn(x: Tensor, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
            out = F.conv2d(x, next(tensors), stride=stride, padding=padding, groups=groups)
            scale, shift, mean, var = (next(tensors)[:, None, None] for _ in range(4))
            return scale * (out - mean) / (var + 1e-5).sqrt() + shift

        x = conv_bn(x).relu()
        for unit in range(16):
            first, stride = (1 if unit == 0 else 3), (2 if unit in (0, 4, 12) else 1)
            out = F.channel_shuffle(conv_bn(x, groups=first).relu(), first)
            out = conv_bn(out, stride=stride, padding=1, groups=out.shape[1]).relu()
            out = conv_bn(out, groups=3)
            x = (torch.cat([out, F.avg_pool2d(x, 3, 2, 1)], dim=1) if stride == 2 else out + x).relu()
        return F.linear(x.mean(dim=(2, 3)), next(tensors), next(tensors))


def test_shufflenetv1_equals_a_functional_form() -> None:
    model = scrambled("cifar_shufflenetv1")
    assert_equal_logits(model, FunctionalShuffleNetV1(model.state_dict()))
