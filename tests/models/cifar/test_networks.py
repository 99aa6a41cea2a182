"""Every CIFAR network keeps timm's interface and states its size and taps truly."""

import copy
import pickle
from functools import cache
from typing import Any, NamedTuple

import pytest
import timm
import torch
from torch import Tensor, nn

from kd_lightning.models.cifar import CifarNetwork
from kd_lightning.models.cifar.wide_resnet import CifarWideResNet

Map = tuple[int, int]  # channels, side on 32x32 images


class Case(NamedTuple):
    parameters: int  # with 100 classes
    published: float  # millions, from the tables of the CRD line of papers
    stem: Map
    stages: tuple[Map, ...]
    embedding: int


NARROW = ((16, 32), (32, 16), (64, 8))
WIDE = ((64, 32), (128, 16), (256, 8))
VGG = ((128, 16), (256, 8), (512, 4), (512, 4))
CASES = {
    "cifar_resnet8": Case(83_892, 0.08, (16, 32), NARROW, 64),
    "cifar_resnet14": Case(181_108, 0.18, (16, 32), NARROW, 64),
    "cifar_resnet20": Case(278_324, 0.28, (16, 32), NARROW, 64),
    "cifar_resnet32": Case(472_756, 0.47, (16, 32), NARROW, 64),
    "cifar_resnet44": Case(667_188, 0.66, (16, 32), NARROW, 64),
    "cifar_resnet56": Case(861_620, 0.86, (16, 32), NARROW, 64),
    "cifar_resnet110": Case(1_736_564, 1.74, (16, 32), NARROW, 64),
    "cifar_resnet8x4": Case(1_233_540, 1.23, (32, 32), WIDE, 256),
    "cifar_resnet32x4": Case(7_433_860, 7.43, (32, 32), WIDE, 256),
    "cifar_wrn_16_1": Case(180_916, 0.18, (16, 32), NARROW, 64),
    "cifar_wrn_16_2": Case(703_284, 0.70, (16, 32), ((32, 32), (64, 16), (128, 8)), 128),
    "cifar_wrn_28_2": Case(1_479_220, 1.48, (16, 32), ((32, 32), (64, 16), (128, 8)), 128),
    "cifar_wrn_40_1": Case(569_780, 0.57, (16, 32), NARROW, 64),
    "cifar_wrn_40_2": Case(2_255_156, 2.26, (16, 32), ((32, 32), (64, 16), (128, 8)), 128),
    "cifar_vgg8": Case(3_965_028, 3.97, (64, 32), VGG, 512),
    "cifar_vgg13": Case(9_462_180, 9.46, (64, 32), VGG, 512),
    "cifar_mobilenetv2": Case(812_836, 0.81, (16, 16), ((12, 16), (16, 8), (48, 4), (160, 2)), 1280),
    "cifar_shufflenetv1": Case(949_258, 0.95, (24, 32), ((240, 16), (480, 8), (960, 4)), 960),
    "cifar_shufflenetv2": Case(1_355_528, 1.36, (24, 32), ((116, 16), (232, 8), (464, 4)), 1024),
    "cifar_resnet50": Case(23_705_252, 23.7, (64, 32), ((256, 32), (512, 16), (1024, 8), (2048, 4)), 2048),
}
FAMILIES = ["cifar_resnet20", "cifar_wrn_16_2", "cifar_vgg8", "cifar_mobilenetv2", "cifar_shufflenetv1"]
FAMILIES += ["cifar_shufflenetv2", "cifar_resnet50"]
every = pytest.mark.parametrize("name", CASES)
families = pytest.mark.parametrize("name", FAMILIES)


def create(name: str, **kwargs: Any) -> CifarNetwork:
    model = timm.create_model(name, **kwargs)
    assert isinstance(model, CifarNetwork)
    return model


@cache
def network(name: str) -> CifarNetwork:
    """One network a name, in eval mode, which the tests must leave as it is."""
    torch.manual_seed(0)
    model = create(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(images(8))  # statistics of data: with the initial ones deep networks give the same for every image
    return model.eval()


def images(count: int = 2, channels: int = 3, side: int = 32) -> Tensor:
    """Coarse patterns, because random networks hardly tell one fine noise from another."""
    coarse = torch.randn(count, channels, 4, 4, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(coarse, size=side, mode="bilinear")


@torch.no_grad()
def tapped(model: nn.Module, names: list[str], x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs and outputs of submodules in one forward."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    handles = []
    for name in names:

        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
            assert name not in outputs, f"{name} ran twice"
            inputs[name], outputs[name] = args[0], output

        handles.append(model.get_submodule(name).register_forward_hook(hook))
    model(x)
    for handle in handles:
        handle.remove()
    return inputs, outputs


def test_table_covers_the_registry() -> None:
    assert sorted(timm.list_models("cifar_*")) == sorted(CASES)
    assert all(timm.is_model(name) for name in CASES)


@every
def test_parameter_count(name: str) -> None:
    count = sum(parameter.numel() for parameter in network(name).parameters())
    assert count == CASES[name].parameters
    assert abs(count / 1e6 - CASES[name].published) < 0.01


@every
@torch.no_grad()
def test_forward_is_head_of_features(name: str) -> None:
    model, case, x = network(name), CASES[name], images()
    features = model.forward_features(x)
    embedding = model.forward_head(features, pre_logits=True)
    logits = model(x)
    assert model.num_classes == 100
    assert model.num_features == case.embedding
    assert features.shape[:2] == (2, case.embedding)
    assert features.ndim == 4
    assert logits.shape == (2, 100)
    torch.testing.assert_close(embedding, features.mean(dim=(2, 3)))
    torch.testing.assert_close(logits, model.get_classifier()(embedding))
    torch.testing.assert_close(logits, model.forward_head(features))


@every
@torch.no_grad()
def test_a_sample_alone_gives_what_it_gives_in_a_batch(name: str) -> None:
    model, x = network(name), images()
    both, alone = model(x), model(x[:1])
    assert alone.shape == (1, 100)
    torch.testing.assert_close(alone, both[:1], rtol=1e-3, atol=1e-3 * both.abs().max().item())


@every
def test_taps_are_as_stated(name: str) -> None:
    model, case = network(name), CASES[name]
    infos = [model.stem_info, *model.feature_info]
    _, outputs = tapped(model, [info["module"] for info in infos], images())
    stated = [(info["num_chs"], 32 // info["reduction"]) for info in infos]
    assert stated == [case.stem, *case.stages]
    assert [tuple(out.shape) for out in outputs.values()] == [(2, chs, side, side) for chs, side in stated]
    assert [info["module"] for info in infos] == ["stem", *(f"stages.{i}" for i in range(len(case.stages)))]


@every
def test_pre_activation_taps(name: str) -> None:
    model = network(name)
    # Statistics of the batch, so that the scale of a freshly initialised deep network cannot decide the signs.
    copied = copy.deepcopy(model).train()
    stages, preacts = zip(*((info["module"], info["preact"]) for info in model.feature_info), strict=True)
    inputs, outputs = tapped(copied, [*stages, *preacts], images(4))
    for stage, preact in zip(stages, preacts, strict=True):
        value, before = outputs[stage], inputs[preact]
        assert before.shape == value.shape
        assert 0.1 < (before < 0).float().mean() < 0.9
        if isinstance(copied, CifarWideResNet):
            first_bn = copied.get_submodule(preact.replace("act1", "bn1").replace("neck.act", "neck.bn"))
            torch.testing.assert_close(before, first_bn(value))
            assert (value < 0).any()
        elif name == "cifar_mobilenetv2":
            torch.testing.assert_close(before, value)
        else:
            torch.testing.assert_close(value, before.clamp(min=0))


@every
def test_no_activation_works_in_place(name: str) -> None:
    activations = [module for module in network(name).modules() if isinstance(module, nn.ReLU)]
    assert activations
    assert not any(activation.inplace for activation in activations)


@every
def test_every_parameter_is_trained(name: str) -> None:
    model = copy.deepcopy(network(name)).train()
    model(images()).square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        # A shift before the next batch normalisation, with a linear map at most between, has no effect.
        assert key.endswith("bias") or parameter.grad.abs().max() > 0, key


def test_widths() -> None:
    model = create("cifar_resnet8x4", widths=[4, 8, 8, 12]).eval()
    _, outputs = tapped(model, ["stem", "stages.0", "stages.1", "stages.2"], images())
    assert [out.shape[1] for out in outputs.values()] == [4, 8, 8, 12]
    assert [info["num_chs"] for info in model.feature_info] == [8, 8, 12]
    assert model.num_features == 12


@families
def test_reset_classifier(name: str) -> None:
    model, x = copy.deepcopy(network(name)), images()
    embedding = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(5)
    assert model.num_classes == 5
    assert model(x).shape == (2, 5)
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), embedding)
    with pytest.raises(ValueError, match="num_classes must be >= 0, got -2"):
        model.reset_classifier(-2)


@families
def test_copies_compute_the_same_and_are_apart(name: str) -> None:
    model, x = network(name), images()
    with torch.no_grad():
        expected = model(x)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(x), expected)
            next(twin.parameters()).zero_()
            assert not torch.equal(twin(x), expected)
        assert torch.equal(model(x), expected)


@families
@torch.no_grad()
def test_channels_last_computes_the_same(name: str) -> None:
    model, x = network(name), images()
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    expected = model(x)
    tolerance = 1e-4 * expected.abs().max().item()
    torch.testing.assert_close(last(x.to(memory_format=torch.channels_last)), expected, rtol=0, atol=tolerance)


@families
def test_bfloat16_autocast(name: str) -> None:
    model, x = network(name), images(2)
    with torch.no_grad():
        expected = model.forward_features(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features, logits = model.forward_features(x), model(x)
    assert logits.dtype == torch.bfloat16
    # Of what the images differ in, depth amplifies the rounding; but for another function they would be uncorrelated.
    varying, expected_varying = ((out.float() - out.float().mean(dim=0)).flatten() for out in (features, expected))
    assert nn.functional.cosine_similarity(varying, expected_varying, dim=0) > 0.5


@pytest.mark.parametrize("name", [*FAMILIES, "cifar_resnet8x4", "cifar_wrn_40_1"])
def test_small_gray_images(name: str) -> None:
    model = create(name, num_classes=10, in_chans=1).eval()
    with torch.no_grad():
        assert model(images(3, channels=1, side=8)).shape == (3, 10)


def test_dropout_is_before_the_classifier_and_in_training_only() -> None:
    model = create("cifar_resnet8", drop_rate=0.5)
    ones = torch.ones(64, 64, 2, 2)
    assert torch.equal(model.eval().forward_head(ones, pre_logits=True), torch.ones(64, 64))
    dropped = model.train().forward_head(ones, pre_logits=True)
    assert set(dropped.flatten().tolist()) == {0.0, 2.0}


@families
def test_features_only_gives_the_stages(name: str) -> None:
    model, x = network(name), images()
    wrapped = timm.create_model(name, features_only=True).eval()
    wrapped.load_state_dict({key.replace("stages.", "stages_", 1): value for key, value in _backbone(model).items()})
    stages = [info["module"] for info in model.feature_info]
    _, outputs = tapped(model, stages, x)
    with torch.no_grad():
        torch.testing.assert_close(wrapped(x), [outputs[stage] for stage in stages])


def _backbone(model: CifarNetwork) -> dict[str, Tensor]:
    kept = {key: value for key, value in model.state_dict().items() if not key.startswith(("neck", "fc"))}
    return {key.replace("stem.", "stem_", 1): value for key, value in kept.items()}


def test_initialisation() -> None:
    for name, key, std in (
        ("cifar_resnet56", "stages.2.5.conv2.weight", (2 / (9 * 64)) ** 0.5),
        ("cifar_wrn_40_2", "stages.2.3.conv1.weight", (2 / (9 * 128)) ** 0.5),
        ("cifar_vgg8", "stages.3.0.conv.weight", (2 / (9 * 512)) ** 0.5),
        ("cifar_mobilenetv2", "stages.3.3.depthwise.conv.weight", (2 / (9 * 480)) ** 0.5),
        ("cifar_resnet50", "stages.3.2.conv1.weight", (2 / 512) ** 0.5),
        ("cifar_vgg8", "fc.weight", 0.01),
        ("cifar_mobilenetv2", "fc.weight", 0.01),
        ("cifar_shufflenetv2", "neck.conv.weight", (1 / (3 * 464)) ** 0.5),  # torch: uniform within 1 / sqrt(fan in)
    ):
        assert network(name).state_dict()[key].std().item() == pytest.approx(std, rel=0.05), (name, key)
    for name in ("cifar_vgg8", "cifar_mobilenetv2", "cifar_wrn_16_1"):
        assert not network(name).state_dict()["fc.bias"].any()
