import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from kd_lightning.batch import Batch
from kd_lightning.models import FrozenTeacher, Network, Outputs, Views
from kd_lightning.models.anatomy import Anatomy
from kd_lightning.models.quick import cast_once, foldable, folded
from kd_lightning.models.tap_plan import several
from kd_lightning.models.taps import install, tapped
from kd_lightning.models.trace import traced

SHAPE = (3, 32, 32)
SYMBOLS = ("stages", "stem+stages", "stages:preact", "stage:1", "last_stage", "last_map", "embedding")


def lived_in(network: nn.Module) -> nn.Module:
    """With statistics and scales that a training would have left."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.3, generator=generator)
    return network.requires_grad_(False).eval()


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.norm(self.conv(x)).mean((2, 3)))
        return out


class Twice(Net):
    def forward(self, x: Tensor) -> Tensor:
        heard = self.conv(x)
        out: Tensor = self.fc((self.norm(heard).relu() + heard).mean((2, 3)))
        return out


class Asked(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.norm.weight[0]


class Shown(Net):
    """A tap hears the convolution's output as another tensor; the logits do not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.show = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        heard = self.conv(x)
        self.show(2 * heard)
        out: Tensor = self.fc(self.norm(heard).mean((2, 3)))
        return out


def nested() -> nn.Module:
    """Parents share a tensor with a part of theirs at their input, at their output or at both."""
    stem = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3)))
    block = nn.Sequential(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), nn.Conv2d(4, 4, 3), nn.Identity())
    rest = nn.Sequential(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    return nn.Sequential(stem, block, rest)


def heard_in(network: nn.Module, taps: list[str]) -> dict[str, Tensor]:
    install(network, taps)
    with torch.no_grad(), tapped(network, taps) as values:
        network(torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1)))
    return values


def assert_same(one: Tensor, other: Tensor, of: str) -> None:
    assert (one - other).abs().max() < 1e-3 * other.abs().max(), of


def answer(network: nn.Module, taps: list[str], fold: bool) -> Outputs:
    teacher = FrozenTeacher(copy.deepcopy(network), fold=fold, check=False)
    teacher.setup(7, Views(SHAPE), taps)
    images = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    return teacher(Batch({"default": images}, torch.zeros(4).long()))


def understood(network: nn.Module) -> list[str]:
    anatomy, taps = Anatomy(network, SHAPE), []
    for symbol in SYMBOLS:
        try:
            anatomy.named(symbol)
        except ValueError:
            continue
        taps.append(symbol)
    return taps


def test_by_hand() -> None:
    network = lived_in(Net())
    assert isinstance(network, Net)
    made = folded(network, SHAPE)
    assert isinstance(made, Net)
    scale = network.norm.weight / (network.norm.running_var + network.norm.eps).sqrt()
    torch.testing.assert_close(made.conv.weight, network.conv.weight * scale[:, None, None, None])
    torch.testing.assert_close(made.conv.bias, network.norm.bias - network.norm.running_mean * scale)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("cifar_resnet20", 0),
        ("cifar_vgg8", 0),
        ("cifar_shufflenetv2", 0),
        ("cifar_wrn_16_2", 6),  # those that follow on a sum
        ("resnet18", 0),
        ("efficientnet_b0", 0),  # normalisation and activation in one module
        ("deit_tiny_patch16_224", 0),
    ],
)
def test_the_logits_are_equal_but_for_rounding(name: str, left: int) -> None:
    options = {"img_size": 32, "patch_size": 8, "depth": 2} if "deit" in name else {}
    network = lived_in(timm.create_model(name, num_classes=7, **options))
    made = folded(network, SHAPE)
    assert norms(made) == left
    image = torch.randn(4, *SHAPE)
    before, after = network(image), made(image)
    assert (before - after).abs().max() < 1e-5 * before.abs().max()


def test_the_network_stays_as_it_is() -> None:
    network = lived_in(timm.create_model("cifar_resnet8", num_classes=7))
    before = copy.deepcopy(network.state_dict())
    folded(network, SHAPE)
    assert norms(network) > 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("network", [Twice(), Asked(), nn.Sequential(nn.Flatten(), nn.Linear(3072, 5))])
def test_what_cannot_be_folded_is_left_alone(network: nn.Module) -> None:
    assert folded(lived_in(network), SHAPE) is network


def test_a_tap_between_the_two_keeps_them_apart() -> None:
    network = lived_in(Net())
    assert foldable(network, SHAPE) == [("conv", "norm")]
    assert foldable(network, SHAPE, ["conv"]) == []
    assert foldable(network, SHAPE, ["norm:in"]) == []
    assert foldable(network, SHAPE, ["norm", "conv:in"]) == [("conv", "norm")]


@pytest.mark.parametrize("parent", ["0", "0.0", "1:in", "1.0:in", "1.0.0:in"])
def test_a_parent_listens_to_what_its_part_gives(parent: str) -> None:
    network = lived_in(nested())
    first, second = ("0.0.0", "1.0.0"), ("1.1", "2.0")
    assert foldable(network, SHAPE) == [first, second]
    assert foldable(network, SHAPE, [parent]) == [second]
    assert foldable(network, SHAPE, [f"{parent}:map"]) == [second]


@pytest.mark.parametrize("parent", ["1", "1.2", "1.2:in", "2:in"])
def test_what_passes_a_tensor_on_is_listened_to_as_well(parent: str) -> None:
    assert foldable(lived_in(nested()), SHAPE, [parent]) == [("0.0.0", "1.0.0")]


def test_every_tap_hears_the_same() -> None:
    network = lived_in(nested())
    names = [run.name for run in traced(network, SHAPE)[0]]
    for tap in [*names, *(f"{name}:in" for name in names)]:
        made = folded(network, SHAPE, [tap])
        assert made is not network
        assert_same(heard_in(made, [tap])[tap], heard_in(copy.deepcopy(network), [tap])[tap], tap)


def test_a_tap_that_would_hear_something_else_leaves_the_network_alone() -> None:
    network = lived_in(Shown())
    assert folded(network, SHAPE) is not network
    assert foldable(network, SHAPE, ["show"]) == [("conv", "norm")]
    assert folded(network, SHAPE, ["show"]) is network
    assert folded(network, SHAPE, ["norm", "logits"]) is not network


def test_a_tap_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="tap 'cnov': Net has no such submodule; it has, nearest first: conv"):
        folded(lived_in(Net()), SHAPE, ["cnov"])


def test_a_stem_that_is_a_bare_convolution() -> None:
    network = lived_in(timm.create_model("cifar_wrn_16_2", num_classes=7))
    first = ("stem.conv", "stages.0.0.bn1")
    assert first in foldable(network, SHAPE, ["stages.0", "stages.1", "stages.2"])
    assert first not in foldable(network, SHAPE, ["stem", "stages.0", "stages.1", "stages.2"])
    taps = ["stem", "stages.0"]
    made = folded(network, SHAPE, taps)
    assert norms(made) == 7  # one more than where nobody listens
    expected = heard_in(network, taps)
    for tap, value in heard_in(made, taps).items():
        assert_same(value, expected[tap], tap)


@pytest.mark.parametrize(
    "name",
    [
        "cifar_mobilenetv2",
        "cifar_resnet8x4",
        "cifar_shufflenetv1",
        "cifar_shufflenetv2",
        "cifar_vgg8",
        "cifar_wrn_16_2",
        "efficientnet_b0",
        "mobilenetv3_small_050",
        "regnetx_002",
        "resnet18",
    ],
)
def test_a_teacher_says_the_same_folded_whatever_is_tapped(name: str) -> None:
    network = lived_in(timm.create_model(name, num_classes=7))
    taps = understood(network)
    assert {"stages", "stem+stages", "stage:1", "last_stage", "embedding"} <= {*taps}
    expected = answer(network, taps, fold=False)
    for asked in [*([tap] for tap in taps), taps]:
        outputs = answer(network, asked, fold=True)
        assert_same(outputs.logits, expected.logits, f"logits beside {asked}")
        for tap in asked:
            for value, other in zip(several(outputs.taps[tap]), several(expected.taps[tap]), strict=True):
                assert_same(value, other, tap)


def test_casting_once_is_what_autocast_does() -> None:
    network = lived_in(timm.create_model("cifar_resnet8", num_classes=7))
    quick, image = copy.deepcopy(network), torch.randn(4, *SHAPE)
    cast_once(quick, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quick(image), network(image))


def test_a_teacher_taps_the_same_with_and_without() -> None:
    views = Views(SHAPE)
    answers = []
    for fold in (True, False):
        teacher = FrozenTeacher(lived_in(Network("cifar_resnet20").build(7, seed=1)), fold=fold, check=False)
        teacher.setup(7, views, ["stages", "embedding"])
        images = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
        answers.append(teacher(Batch({"default": images}, torch.zeros(4).long())))
    torch.testing.assert_close(answers[0].logits, answers[1].logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(answers[0].taps, answers[1].taps, rtol=1e-4, atol=1e-4)


def test_a_teacher_asked_in_mixed_precision_is_folded_too() -> None:
    network = lived_in(Network("cifar_resnet20").build(7, seed=1))
    teacher = FrozenTeacher(network, check=False)
    teacher.setup(7, Views(SHAPE), [])
    images = torch.randn(4, *SHAPE)
    with torch.autocast("cpu", torch.bfloat16):
        logits = teacher(Batch({"default": images}, torch.zeros(4).long())).logits
        assert teacher._quick is not None
        assert norms(teacher._quick[1]) == 0
        expected = network(images)
    assert (logits - expected).abs().max() < 0.03 * expected.abs().max()  # bfloat16 has 8 bits


def test_a_teacher_may_be_compiled() -> None:
    network = lived_in(Network("cifar_resnet8").build(7, seed=1))
    batch, answers = Batch({"default": torch.randn(4, *SHAPE)}, torch.zeros(4).long()), []
    for backend in (None, "aot_eager"):
        teacher = FrozenTeacher(copy.deepcopy(network), check=False, compile=backend)
        teacher.setup(7, Views(SHAPE), ["stages"])
        answers.append(teacher(batch))
        assert teacher._quick is not None
        assert (teacher._quick[1]._compiled_call_impl is None) == (backend is None)
    torch.testing.assert_close(answers[1].logits, answers[0].logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(answers[1].taps, answers[0].taps, rtol=1e-4, atol=1e-4)


def test_a_compiler_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"teacher.compile must be null or one of \[.*inductor.*\], got 'fast'"):
        FrozenTeacher(Net(), compile="fast")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_in_half_precision_is_folded_in_float32(dtype: torch.dtype) -> None:
    network = lived_in(Network("cifar_resnet8").build(7, seed=1)).to(dtype)
    quick = folded(network, SHAPE, ["stages.1"])
    assert norms(quick) < norms(network)
    assert {value.dtype for value in quick.parameters()} == {dtype}
    exact, image = copy.deepcopy(network).float(), torch.randn(4, *SHAPE)
    expected = exact(image)
    assert (quick(image.to(dtype)) - expected).abs().max() < 0.03 * expected.abs().max()
