"""Recipes: what is built, from which weights, and what is refused."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from kd_lightning import trust
from kd_lightning.models import Network, save_weights


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working folder, allowed for this test."""
    (tmp_path / "own_networks.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self, num_classes, width=4):\n"
        "        super().__init__()\n        self.fc = nn.Linear(width, num_classes)\n\n\n"
        "def annotated(num_classes: int) -> Net:\n    return Net(num_classes)\n\n\n"
        "def unannotated(num_classes):\n    return Net(num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(trust, "ALLOWED", set(trust.BUILT_IN))
    return "own_networks"


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_timm_and_own_networks_are_built_for_the_datas_classes() -> None:
    assert Network("resnet18").build(7).get_classifier().out_features == 7  # type: ignore[operator,union-attr]
    network = Network("cifar_resnet8", {"widths": [4, 4, 8, 16]}).build(5, in_chans=1)
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 5)


def test_a_path_needs_permission(own_module: str) -> None:
    recipe = Network(f"{own_module}.Net", {"width": 9})
    with pytest.raises(ValueError, match="--allow own_networks"):
        recipe.build(3)
    trust.allow([own_module])
    assert recipe.build(3).fc.weight.shape == (3, 9)
    assert Network(f"{own_module}.annotated").build(3).fc.weight.shape == (3, 4)
    with pytest.raises(ValueError, match="annotated to return one"):
        Network(f"{own_module}.unannotated").build(3)
    with pytest.raises(ValueError, match="did you mean Net"):
        Network(f"{own_module}.Nett").build(3)


@pytest.mark.parametrize("name", ["os.system", "subprocess.run", "torch.hub.load"])
def test_what_is_no_network_is_not_called(name: str) -> None:
    with pytest.raises(ValueError, match=r"may not be imported|annotated to return one"):
        Network(name).build(3)


def test_unknown_name_and_argument() -> None:
    with pytest.raises(ValueError, match="cifar_resnet20"):
        Network("cifar_resnet21").build(3)
    with pytest.raises(ValueError, match=r"network cifar_resnet20: .*depth"):
        Network("cifar_resnet20", {"depth": 3}).build(3)


def test_what_must_not_be_stated() -> None:
    with pytest.raises(ValueError, match="num_classes, which comes from the data"):
        Network("resnet18", {"num_classes": 10})
    with pytest.raises(ValueError, match="weights: pretrained"):
        Network("resnet18", {"pretrained": True})
    with pytest.raises(ValueError, match="mean and std must be given together"):
        Network("resnet18", mean=(0.5,))
    with pytest.raises(ValueError, match="recipe: CONFIG"):
        Network("resnet18", weights={"config": "x"})


def test_initialisation_is_named_by_seed_and_role() -> None:
    recipe = Network("cifar_resnet8")
    first = recipe.build(10, seed=1)
    torch.rand(7)
    assert same(first, recipe.build(10, seed=1))
    assert not same(first, recipe.build(10, seed=2))
    assert not same(first, recipe.build(10, role="teacher", seed=1))


def test_weights_from_a_file_and_a_run(tmp_path: Path) -> None:
    trained = Network("cifar_resnet8").build(10, seed=1)
    save_weights(trained, tmp_path / "w.safetensors")
    assert same(trained, Network("cifar_resnet8", weights=str(tmp_path / "w.safetensors")).build(10, seed=2))
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"has no checkpoints/last.ckpt"):
        Network("cifar_resnet8", weights=str(tmp_path / "run")).build(10)
    state = {f"student.{key}": value for key, value in trained.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "run/checkpoints/last.ckpt")
    assert same(trained, Network("cifar_resnet8", weights=str(tmp_path / "run")).build(10, seed=2))
    with pytest.raises(FileNotFoundError, match=r"nowhere.pth"):
        Network("cifar_resnet8", weights="nowhere.pth").build(10)
    with pytest.raises(ValueError, match="kd-lightning command"):
        Network("cifar_resnet8", weights={"recipe": "x.yaml"}).build(10)
    with pytest.raises(ValueError, match="has 10 classes, the network 100"):
        Network("cifar_resnet8", weights=str(tmp_path / "w.safetensors")).build(100)


def test_pretrained_teacher_must_have_the_datas_classes() -> None:
    with pytest.raises(ValueError, match="has 1000 classes, the data 10"):
        Network("resnet18", weights="pretrained").build(10, role="teacher")
    with pytest.raises(ValueError, match="no pretrained weights"):
        Network("not_a_model", weights="pretrained").normalisation()


def test_input_that_it_was_made_for() -> None:
    recipe = Network("vit_small_patch16_384", weights="pretrained")
    config = timm.get_pretrained_cfg("vit_small_patch16_384")
    assert config is not None
    assert recipe.normalisation() == (config.mean, config.std)
    assert recipe.resolution() == 384
    assert Network("resnet18").normalisation() is None
    assert Network("resnet18").resolution() is None
    assert Network("resnet18", mean=(0.1,), std=(0.2,), image_size=64).resolution() == 64
