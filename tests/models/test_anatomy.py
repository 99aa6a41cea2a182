import copy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import kd_lightning.models  # noqa: F401  (registers the cifar_* networks)
from kd_lightning.models.anatomy import Anatomy, is_symbol, norm_before
from kd_lightning.models.tap_plan import TapPlan, plan, several
from kd_lightning.models.taps import tapped

SYMBOLS = ["stages", "stage:2", "last_stage", "stem+stages", "embedding", "logits"]
CLASSES = 7
Map = tuple[int, ...]


@dataclass(frozen=True)
class Known:
    """What is expected of a network: (name, (C, H, W)) of stem and stages, the embedding, the last map or None."""

    stem: tuple[str, Map]
    stages: list[tuple[str, Map]]
    embedding: tuple[str, int]
    last_map: tuple[str, Map] | None
    size: int = 32
    kwargs: dict[str, Any] = field(default_factory=dict)


def of_cifar(stem: Map, stages: list[Map], last_map: Map) -> Known:
    named = [(f"stages.{i}", shape) for i, shape in enumerate(stages)]
    return Known(("stem", stem), named, ("fc:in", last_map[0]), ("neck", last_map))


def three(stem: int, *widths: int) -> Known:
    stages = [(width, 32 // 2**i, 32 // 2**i) for i, width in enumerate(widths)]
    return of_cifar((stem, 32, 32), stages, stages[-1])


def wide(factor: int) -> Known:
    return three(16, 16 * factor, 32 * factor, 64 * factor)


RESNET, RESNET_X4 = three(16, 16, 32, 64), three(32, 64, 128, 256)
VGG = of_cifar((64, 32, 32), [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4)], (512, 4, 4))
PYRAMID = [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
VIT_STAGES = [(f"blocks.{i}:map", (192, 8, 8)) for i in (2, 5, 8, 11)]
VIT = Known(("patch_embed:map", (192, 8, 8)), VIT_STAGES, ("head:in", 192), None, 32, {"img_size": 32, "patch_size": 4})
KNOWN = {
    **{f"cifar_resnet{depth}": RESNET for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"cifar_resnet{depth}x4": RESNET_X4 for depth in (8, 32)},
    "cifar_resnet50": three(64, 256, 512, 1024, 2048),
    "cifar_wrn_16_1": wide(1),
    "cifar_wrn_40_1": wide(1),
    "cifar_wrn_16_2": wide(2),
    "cifar_wrn_28_2": wide(2),
    "cifar_wrn_40_2": wide(2),
    "cifar_vgg8": VGG,
    "cifar_vgg13": VGG,
    "cifar_mobilenetv2": of_cifar((16, 16, 16), [(12, 16, 16), (16, 8, 8), (48, 4, 4), (160, 2, 2)], (1280, 2, 2)),
    "cifar_shufflenetv1": of_cifar((24, 32, 32), [(240, 16, 16), (480, 8, 8), (960, 4, 4)], (960, 4, 4)),
    "cifar_shufflenetv2": of_cifar((24, 32, 32), [(116, 16, 16), (232, 8, 8), (464, 4, 4)], (1024, 4, 4)),
    "resnet18": Known(
        ("act1:map", (64, 32, 32)),
        [(f"layer{i + 1}:map", shape) for i, shape in enumerate(PYRAMID)],
        ("fc:in", 512),
        ("layer4", PYRAMID[3]),
        64,
        {"zero_init_last": False},  # else the last normalisation is 0, and nothing is negative behind a sum with ReLUs
    ),
    "mobilenetv1_100": Known(
        ("blocks.0:map", (64, 32, 32)),
        [(f"blocks.{i + 1}:map", (2 * width, h, w)) for i, (width, h, w) in enumerate(PYRAMID)],
        ("classifier:in", 1024),
        ("bn2", (1024, 2, 2)),
        64,
    ),
    "regnety_002": Known(
        ("stem:map", (32, 32, 32)),
        [(f"s{i}:map", shape) for i, shape in enumerate([(24, 16, 16), (56, 8, 8), (152, 4, 4), (368, 2, 2)], start=1)],
        ("head.fc:in", 368),
        ("final_conv", (368, 2, 2)),
        64,
        {"zero_init_last": False},
    ),
    "vit_tiny_patch16_224": VIT,
    "deit_tiny_distilled_patch16_224": VIT,
    "swin_tiny_patch4_window7_224": Known(
        ("patch_embed:map", (96, 16, 16)),
        [(f"layers.{i}:map", (96 * 2**i, 16 // 2**i, 16 // 2**i)) for i in range(4)],
        ("head.fc:in", 768),
        ("norm:map", (768, 2, 2)),
        64,
        {"img_size": 64, "window_size": 4},
    ),
    "convnext_atto": Known(
        ("stem:map", (40, 16, 16)),
        [(f"stages.{i}:map", (40 * 2**i, 16 // 2**i, 16 // 2**i)) for i in range(4)],
        ("head.fc:in", 320),
        None,  # it normalises between the mean and the classifier
        64,
    ),
    "levit_128s": Known(
        ("stem:map", (128, 8, 8)),
        [(f"stages.{i}:map", (128 * (i + 1), 8 // 2**i, 8 // 2**i)) for i in range(3)],
        ("head:in", 384),
        ("stages:map", (384, 2, 2)),
        128,
        {"img_size": 128},
    ),
    "torchvision": Known(
        ("conv1:map", (64, 32, 32)),
        [(f"layer{i + 1}", shape) for i, shape in enumerate(PYRAMID)],
        ("fc:in", 512),
        ("layer4", PYRAMID[3]),
        64,
    ),
}
ENDS_IN_RELU = ["resnet8", "resnet14", "resnet8x4", "vgg8", "vgg13", "shufflenetv1", "shufflenetv2"]
SMALL = [f"cifar_{name}" for name in ENDS_IN_RELU]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "torchvision":
        return torchvision.models.resnet18(num_classes=CLASSES)
    return timm.create_model(name, num_classes=CLASSES, **KNOWN[name].kwargs)


@cache
def kept(name: str) -> nn.Module:
    """A network that several tests look at, and none changes."""
    return build(name).eval()


def images(size: int, number: int = 2) -> Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(1))


def answered(network: nn.Module, found: TapPlan, image: Tensor) -> dict[str, list[Tensor]]:
    with torch.no_grad(), tapped(network, found.submodules()) as taps:
        logits = network(image)
    return {**{tap: several(value) for tap, value in found.picked(taps).items()}, "logits": [logits]}


def test_every_network_of_this_package_is_known() -> None:
    assert set(timm.list_models("cifar_*")) == {name for name in KNOWN if name.startswith("cifar_")}


@pytest.mark.parametrize("name", KNOWN)
def test_symbols_resolve_with_the_expected_names_shapes_and_values(name: str) -> None:
    known, network = KNOWN[name], build(name).eval()
    symbols = SYMBOLS if known.last_map is None else [*SYMBOLS, "last_map"]
    found = plan(network, symbols, (3, known.size, known.size))
    stages = [stage for stage, _ in known.stages]
    shapes = [(2, *shape) for _, shape in known.stages]
    assert found.names["stages"] == stages
    assert found.shapes["stages"] == shapes
    assert (found.names["stage:2"], found.shapes["stage:2"]) == (stages[1], shapes[1])
    assert (found.names["last_stage"], found.shapes["last_stage"]) == (stages[-1], shapes[-1])
    assert found.names["stem+stages"] == [known.stem[0], *stages]
    assert found.shapes["stem+stages"] == [(2, *known.stem[1]), *shapes]
    assert (found.names["embedding"], found.shapes["embedding"]) == (known.embedding[0], (2, known.embedding[1]))
    assert found.shapes["logits"] == (2, CLASSES)
    values = answered(network, found, images(known.size))
    assert all(tuple(v.shape) == s for v, s in zip(values["stages"], shapes, strict=True))
    if known.last_map is None:
        with pytest.raises(ValueError, match=f"tap 'last_map': {type(network).__name__} has no map whose mean is"):
            plan(network, ["last_map"], (3, known.size, known.size))
    else:
        assert (found.names["last_map"], found.shapes["last_map"]) == (known.last_map[0], (2, *known.last_map[1]))
        mean = values["last_map"][0].mean(dim=(2, 3))
        torch.testing.assert_close(mean, values["embedding"][0], atol=1e-5, rtol=1e-4)
    if name not in ("deit_tiny_distilled_patch16_224", "levit_128s"):  # which answer with the mean of two heads
        head = network.get_submodule(known.embedding[0].removesuffix(":in"))
        torch.testing.assert_close(head(values["embedding"][0]), values["logits"][0])


@pytest.mark.parametrize("name", [*SMALL, "resnet18", "regnety_002", "mobilenetv1_100"])
def test_before_its_relu_a_stage_has_negative_values_and_relu_makes_it_the_stage(name: str) -> None:
    network, size = kept(name), KNOWN[name].size
    found = plan(network, ["stages", "stages:preact", "stage:2:preact", "last_stage:preact"], (3, size, size))
    values = answered(network, found, images(size))
    assert found.shapes["stages:preact"] == found.shapes["stages"]
    for before, stage in zip(values["stages:preact"], values["stages"], strict=True):
        assert (before < 0).float().mean() > 0.05
        assert torch.equal(before.relu(), stage)
    assert torch.equal(values["stage:2:preact"][0], values["stages:preact"][1])
    assert torch.equal(values["last_stage:preact"][0], values["stages:preact"][-1])


def test_stages_without_a_relu_of_their_own_are_normalised_before_the_next() -> None:
    # A wide ResNet's stage ends in a sum; before the ReLU is that sum, normalised.
    network = kept("cifar_wrn_16_2")
    found = plan(network, ["stages", "stages:preact"], (3, 32, 32))
    assert found.names["stages:preact"] == ["stages.1.0.act1:in", "stages.2.0.act1:in", "neck.act:in"]
    values = answered(network, found, images(32))
    norms = [network.get_submodule(norm) for norm in ("stages.1.0.bn1", "stages.2.0.bn1", "neck.bn")]
    for before, stage, norm in zip(values["stages:preact"], values["stages"], norms, strict=True):
        assert (before < 0).any()
        assert torch.equal(before, norm(stage))


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "convnext_atto", "torchvision"],
)
def test_stages_that_end_in_no_activation_have_nothing_before_it(name: str) -> None:
    # torchvision runs one ReLU twice in a block: it is no place for a tap.
    network, known = kept(name), KNOWN[name]
    message = f"tap '{known.stages[0][0]}:preact': this stage of {type(network).__name__} does not end in an activation"
    with pytest.raises(ValueError, match=message):
        plan(network, ["stages:preact"], (3, known.size, known.size))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_attention_rows_sum_to_1_and_reproduce_the_fused_output(name: str) -> None:
    network, image = copy.deepcopy(kept(name)), images(32)
    attention = network.get_submodule("blocks.11.attn")
    assert attention.fused_attn is True
    with torch.no_grad():
        fused = network(image)
    found = plan(network, ["attention", "blocks.11.attn:in"], (3, 32, 32))
    assert found.names["attention"] == "blocks.11.attn:probabilities"
    with torch.no_grad(), tapped(network, found.submodules()) as taps:
        logits = network(image)
    rows, x = taps["blocks.11.attn:probabilities"], taps["blocks.11.attn:in"]
    tokens = 65 if name.startswith("vit") else 66  # 8 x 8 patches, a class token, and DeiT's distillation token
    assert rows.shape == (2, 3, tokens, tokens) == found.shapes["attention"]
    assert (rows >= 0).all()
    torch.testing.assert_close(rows.sum(dim=-1), torch.ones(2, 3, tokens))
    torch.testing.assert_close(logits, fused, atol=1e-5, rtol=1e-4)
    # By hand: probabilities times values, heads side by side, projected, is what fused attention gives.
    with torch.no_grad():
        value = attention.qkv(x).reshape(2, tokens, 3, 3, 64)[:, :, 2].transpose(1, 2)
        ours = attention.proj((rows @ value).transpose(1, 2).reshape(2, tokens, 192))
        attention.fused_attn = True
        theirs = attention(x)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_attention_of_windows_has_rows_that_sum_to_1() -> None:
    network = copy.deepcopy(kept("swin_tiny_patch4_window7_224"))
    found = plan(network, ["attention"], (3, 64, 64))
    rows = answered(network, found, images(64))["attention"][0]
    assert found.names["attention"] == "layers.3.blocks.1.attn:probabilities"
    torch.testing.assert_close(rows.sum(dim=-1), torch.ones(rows.shape[:-1]))


@pytest.mark.parametrize("name", ["cifar_resnet8", "convnext_atto", "torchvision"])
def test_without_attention_there_is_a_clear_error(name: str) -> None:
    network, size = kept(name), KNOWN[name].size
    with pytest.raises(ValueError, match=f"tap 'attention': {type(network).__name__} has no attention of timm"):
        plan(network, ["attention"], (3, size, size))


class Plain(nn.Module):
    """No figures about itself: two maps of 8x8, one of 4x4, one of 1x1, a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(inplace=True))
        self.third = nn.Sequential(nn.Conv2d(5, 6, 3, stride=2, padding=1), nn.Tanh())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pool(self.third(self.second(self.first(x)))).flatten(1))
        return logits


class Stemmed(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.stem(x))


def test_a_plain_network_has_a_stage_for_each_size_of_its_maps() -> None:
    network = Plain().eval()
    symbols = [*(s for s in SYMBOLS if s != "stem+stages"), "last_map", "stages:preact"]
    found = plan(network, symbols, (3, 8, 8))
    assert found.names == {
        "stages": ["second", "third"],
        "stage:2": "third",
        "last_stage": "third",
        "embedding": "head:in",
        "last_map": "third",
        "stages:preact": ["second.1:in", "third.1:in"],
    }
    assert found.shapes["stages"] == [(2, 5, 8, 8), (2, 6, 4, 4)]
    assert (found.shapes["embedding"], found.shapes["logits"]) == ((2, 6), (2, CLASSES))
    values = answered(network, found, images(8))
    assert (values["stages:preact"][0] < 0).any()
    assert torch.equal(values["stages:preact"][0].relu(), values["stages"][0])
    assert torch.equal(values["stages:preact"][1].tanh(), values["stages"][1])
    assert torch.equal(values["stage:2"][0], values["stages"][1])


def test_a_stem_is_known_by_its_name_or_not_at_all() -> None:
    assert plan(Stemmed().eval(), ["stem+stages"], (3, 8, 8)).names["stem+stages"] == ["stem:map", "second", "third"]
    with pytest.raises(ValueError, match="tap 'stem.stages': Plain has no stem that is known: name its submodules"):
        plan(Plain().eval(), ["stem+stages"], (3, 8, 8))


def test_a_stage_that_is_not_there_is_an_error() -> None:
    for symbol in ("stage:0", "stage:4"):
        with pytest.raises(ValueError, match=f"tap '{symbol}': CifarResNet has 3 stages, counted from 1"):
            plan(kept("cifar_resnet8"), [symbol], (3, 32, 32))


def test_a_network_without_maps_has_no_stages_and_no_last_map() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, CLASSES))
    assert plan(network, ["embedding"], (3, 4, 4)).names["embedding"] == "3:in"
    with pytest.raises(ValueError, match=r"Sequential has no maps \[N, C, H, W\], so no stages"):
        plan(network, ["stages"], (3, 4, 4))
    with pytest.raises(ValueError, match="tap 'last_map': Sequential has no map whose mean"):
        plan(network, ["last_map"], (3, 4, 4))


def test_a_network_whose_output_is_no_linear_layer_has_no_known_classifier() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES), nn.ReLU())
    with pytest.raises(ValueError, match="the classifier of Sequential is not known: its output is not a linear"):
        plan(network, ["embedding"], (3, 4, 4))


def test_transformers_with_mean_pooling_have_a_last_map() -> None:
    network = timm.create_model(
        "vit_tiny_patch16_224",
        num_classes=CLASSES,
        img_size=32,
        patch_size=4,
        depth=2,
        global_pool="avg",
        fc_norm=False,
    ).eval()
    found = plan(network, ["last_map", "embedding"], (3, 32, 32))
    assert found.names["last_map"] == "norm:map"
    values = answered(network, found, images(32))
    torch.testing.assert_close(values["last_map"][0].mean((2, 3)), values["embedding"][0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("tap", "symbol"),
    [
        *((name, True) for name in ["stages", "stage:1", "stage:12", "stages:preact", "stage:2:preact", "attention"]),
        *((name, True) for name in ["last_stage", "stem+stages", "embedding", "last_map", "logits"]),
        *((name, False) for name in ["stages.0", "stage", "stage:", "stage:x", "layer2", "embedding:in", "stem"]),
    ],
)
def test_what_is_a_symbol(tap: str, symbol: bool) -> None:
    assert is_symbol(tap) is symbol


@pytest.mark.parametrize(
    ("name", "norms"),
    [
        ("cifar_resnet8", ["stages.0.0.bn2", "stages.1.0.bn2", "stages.2.0.bn2"]),
        ("cifar_wrn_16_2", ["stages.1.0.bn1", "stages.2.0.bn1", "neck.bn"]),
        ("cifar_vgg8", ["stages.0.1.bn", "stages.1.1.bn", "stages.2.1.bn", "stages.3.0.bn"]),
        ("resnet18", ["layer1.1.bn2", "layer2.1.bn2", "layer3.1.bn2", "layer4.1.bn2"]),
        ("mobilenetv1_100", ["blocks.1.1.bn2", "blocks.2.1.bn2", "blocks.3.5.bn2", "blocks.4.1.bn2"]),
    ],
)
def test_the_normalisation_in_front_of_each_stage(name: str, norms: list[str]) -> None:
    # Each block of cifar_resnet8 but the first has a projection shortcut with a normalisation of its own.
    network, size = kept(name), KNOWN[name].size
    taps = several(plan(network, ["stages:preact"], (3, size, size)).names["stages:preact"])
    assert [norm_before(network, tap) for tap in taps] == [network.get_submodule(norm) for norm in norms]


def test_the_channels_before_the_relu_have_the_figures_of_their_normalisation() -> None:
    network = build("cifar_wrn_16_2")
    found = plan(network, ["stages:preact"], (3, 32, 32))
    norms = [norm_before(network, tap) for tap in several(found.names["stages:preact"])]
    for norm in norms:
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.weight)
    values = answered(network.train(), found, images(32, 8))["stages:preact"]
    for value, norm in zip(values, norms, strict=True):
        assert (norm.weight < 0).any()
        torch.testing.assert_close(value.mean((0, 2, 3)), norm.bias.detach(), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(value.std((0, 2, 3)), norm.weight.detach().abs(), atol=1e-2, rtol=1e-2)


def test_no_normalisation_in_front_is_an_error() -> None:
    network = nn.ModuleDict({"bare": nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())})
    network["fixed"] = nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.ReLU())
    network["behind"] = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4))
    for tap in ("bare.1:in", "fixed.1:in", "behind.0:in"):
        with pytest.raises(ValueError, match=f"tap '{tap}': there is no batch normalisation with scale and shift"):
            norm_before(network, tap)


def test_looking_at_a_network_leaves_it_as_it_was() -> None:
    network = Plain()
    network.pool.eval()
    state, modes = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    generator = torch.get_rng_state()
    Anatomy(network, (3, 8, 8)).named("stages")
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(module._forward_hooks for module in network.modules())
