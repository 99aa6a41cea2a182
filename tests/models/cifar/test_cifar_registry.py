"""The CIFAR networks in timm's registry: their configuration, and the arguments that they refuse."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from kd_lightning.models.cifar import CifarNetwork
from kd_lightning.models.cifar.resnet import CifarResNet
from kd_lightning.models.cifar.vgg import CifarVGG
from kd_lightning.models.cifar.wide_resnet import CifarWideResNet

NAMES = timm.list_models("cifar_*")
every = pytest.mark.parametrize("name", NAMES)


def create(name: str, **kwargs: Any) -> CifarNetwork:
    model = timm.create_model(name, **kwargs)
    assert isinstance(model, CifarNetwork)
    return model


@every
def test_no_name_is_timms_own(name: str) -> None:
    # timm.models exports every name that timm itself registers.
    assert "resnet50" in vars(timm.models)
    assert name not in vars(timm.models)


@every
def test_default_configuration(name: str) -> None:
    with torch.device("meta"):
        model = create(name, num_classes=7, in_chans=1)
    cfg: Any = timm.get_pretrained_cfg(name)
    model_cfg: Any = model.pretrained_cfg
    assert cfg.architecture == model_cfg["architecture"] == name
    assert (cfg.input_size, cfg.num_classes) == ((3, 32, 32), 100)
    assert (cfg.mean, cfg.std) == ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
    first_conv, classifier = model.get_submodule(cfg.first_conv), model.get_submodule(cfg.classifier)
    assert first_conv is next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert isinstance(first_conv, nn.Conv2d)
    assert first_conv.in_channels == 1
    assert classifier is model.get_classifier()
    assert isinstance(classifier, nn.Linear)
    assert classifier.out_features == 7


@every
def test_pretrained_is_an_error_that_names_the_network(name: str) -> None:
    with pytest.raises(ValueError, match=rf"pretrained=True, but no weights of {name} are published"):
        timm.create_model(name, pretrained=True)


def test_pretrained_from_a_file_adapts_stem_and_head(tmp_path: Path) -> None:
    source = create("cifar_resnet8")
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    same = create("cifar_resnet8", pretrained=True, pretrained_cfg_overlay=overlay)
    torch.testing.assert_close(same.state_dict(), source.state_dict())
    other = create("cifar_resnet8", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=10, in_chans=1)
    gray = source.state_dict()["stem.conv.weight"].sum(dim=1, keepdim=True)
    torch.testing.assert_close(other.state_dict()["stem.conv.weight"], gray)
    assert other.fc.weight.shape == (10, 64)


@every
def test_unknown_argument(name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name} does not know the argument width=2; it takes .*num_classes"):
        timm.create_model(name, width=2)


def test_structure_that_the_name_fixes_is_unknown() -> None:
    with pytest.raises(TypeError, match=r"cifar_resnet20 does not know the argument depth=26; it takes widths, num_cl"):
        timm.create_model("cifar_resnet20", depth=26)
    with pytest.raises(TypeError, match=r"cifar_wrn_16_2 does not know the argument factor=4, widths="):
        timm.create_model("cifar_wrn_16_2", factor=4, widths=(1, 1, 1, 1))


@every
@pytest.mark.parametrize("in_chans", [0, -1])
def test_in_chans_out_of_range(name: str, in_chans: int) -> None:
    with pytest.raises(ValueError, match=f"in_chans must be >= 1, got {in_chans}"):
        timm.create_model(name, in_chans=in_chans)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_classes": -1}, "num_classes must be >= 0, got -1"),
        ({"drop_rate": 1.0}, r"drop_rate must be in \[0, 1\), got 1.0"),
        ({"widths": (16, 32, 64)}, r"widths must be 4 positive numbers.*got \(16, 32, 64\)"),
        ({"widths": (16, 0, 32, 64)}, r"widths must be 4 positive numbers.*got \(16, 0, 32, 64\)"),
    ],
)
def test_argument_out_of_range(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model("cifar_resnet8", **kwargs)


def test_structure_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"depth must be 6n \+ 2 with n >= 1, got 18"):
        CifarResNet(18)
    with pytest.raises(ValueError, match=r"depth must be 6n \+ 4 with n >= 1, got 4"):
        CifarWideResNet(4, 1)
    with pytest.raises(ValueError, match="convs must be >= 1, got 0"):
        CifarVGG(0)
    with pytest.raises(ValueError, match="factor must be >= 1, got 0"):
        CifarWideResNet(16, 0)
