import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from kd_lightning.models import Network, load_weights, save_weights
from kd_lightning.models.network import weights_file
from kd_lightning.models.weights import file_sha256

MODULE = "nets_beside_the_script"
SOURCE = """
from os import system
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes: int, width: int = 2) -> None:
        super().__init__()
        self.fc = nn.Linear(width, num_classes)

class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3)

def make(num_classes: int, in_chans: int, width: int = 2) -> Net:
    return Net(num_classes, width * in_chans)

def untold(num_classes):
    return Net(num_classes)

def number(num_classes: int) -> int:
    return num_classes

class Plain:
    pass
"""
CIFAR = "cifar_resnet8"


@pytest.fixture(autouse=True)
def nets(importable: Callable[[str, str], None]) -> None:
    importable(MODULE, SOURCE)


def state(network: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(network.state_dict())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("name", "kwargs", "shape"),
    [
        ("resnet10t", {}, (3, 3, 64, 64)),
        (CIFAR, {}, (3, 3, 32, 32)),
        ("cifar_wrn_16_1", {}, (2, 1, 32, 32)),
        ("timm.models.resnet.ResNet", {"block": timm.models.resnet.BasicBlock, "layers": (1, 1, 1, 1)}, (2, 3, 32, 32)),
    ],
)
def test_a_network_has_the_classes_and_channels_of_the_data(
    name: str, kwargs: dict[str, Any], shape: tuple[int, ...]
) -> None:
    network = Network(name, kwargs).build(7, in_chans=shape[1]).eval()
    assert network(torch.zeros(shape)).shape == (shape[0], 7)


@pytest.mark.parametrize(
    ("name", "kwargs", "weight"),
    [("Net", {}, (5, 2)), ("Net", {"width": 4}, (5, 4)), ("make", {}, (5, 6)), ("make", {"width": 3}, (5, 9))],
)
def test_a_dotted_path_of_a_module_or_an_annotated_function(
    name: str, kwargs: dict[str, Any], weight: tuple[int, int]
) -> None:
    network = Network(f"{MODULE}.{name}", kwargs).build(5, in_chans=3)
    assert type(network).__name__ == "Net"
    assert network.get_parameter("fc.weight").shape == weight


def test_a_module_that_takes_no_class_count() -> None:
    assert Network(f"{MODULE}.Fixed").build(9).get_parameter("fc.weight").shape == (3, 2)


@pytest.mark.parametrize("name", ["untold", "number", "Plain", "system", "nn"])
def test_what_may_make_no_module_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"is neither an nn.Module nor a function that is annotated to return one"):
        Network(f"{MODULE}.{name}").build(5)


@pytest.mark.parametrize("name", ["os.system", "subprocess.run", "somewhere.Net"])
def test_a_module_that_is_not_allowed_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' may not be imported: .*--allow {name.split('.')[0]}"):
        Network(name).build(5)


def test_a_missing_name_in_an_allowed_module() -> None:
    with pytest.raises(ValueError, match=f"{MODULE} has no 'Nett', did you mean Net"):
        Network(f"{MODULE}.Nett").build(5)


@pytest.mark.parametrize(
    ("name", "near"), [("resnet_18", "resnet18"), ("cifar_resnet2O", "cifar_resnet20"), ("cifar_vgg14", "cifar_vgg13")]
)
def test_an_unknown_name_gives_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=rf"no network is called '{name}', the nearest are .*\b{near}\b"):
        Network(name).build(5)


def test_a_name_like_no_other() -> None:
    with pytest.raises(ValueError, match="no network is called 'qqqqqqqqq'; a network is a timm model name"):
        Network("qqqqqqqqq").build(5)


@pytest.mark.parametrize("key", ["num_classes", "pretrained"])
def test_what_flows_from_elsewhere_is_no_argument(key: str) -> None:
    with pytest.raises(ValueError, match=f"kwargs must not hold {key}, which .*; got 10"):
        Network(CIFAR, {key: 10})


def test_mean_and_std_belong_together() -> None:
    with pytest.raises(ValueError, match=r"mean and std must be given together, got mean \(0.5,\) and std None"):
        Network(CIFAR, mean=(0.5,))
    with pytest.raises(ValueError, match=r"got mean None and std \(0.5,\)"):
        Network(CIFAR, std=(0.5,))


@pytest.mark.parametrize("name", [f"{MODULE}.Net", CIFAR])
def test_an_unknown_argument_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"network {name}: .*wdith"):
        Network(name, {"wdith": 3}).build(5)


def test_the_initialisation_depends_on_seed_and_role_alone() -> None:
    recipe = Network(CIFAR)
    first = state(recipe.build(5, seed=1))
    recipe.build(5, role="teacher", seed=1)
    Network("cifar_vgg8").build(5, seed=1)
    torch.manual_seed(123)
    torch.randn(17)
    assert same(state(recipe.build(5, seed=1)), first)
    assert not same(state(recipe.build(5, seed=2)), first)
    assert not same(state(recipe.build(5, role="teacher", seed=1)), first)


def test_building_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    Network(CIFAR).build(5, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_seed_is_the_runs_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert same(state(Network(CIFAR).build(5)), state(Network(CIFAR).build(5, seed=7)))


def test_two_builds_are_two_networks() -> None:
    recipe = Network(CIFAR)
    one, two = recipe.build(5, seed=1), recipe.build(5, seed=1)
    before = state(two)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter += 1
    assert same(state(two), before)


def trained(seed: int = 3) -> nn.Module:
    return Network(CIFAR).build(5, seed=seed)


def test_weights_from_a_file(tmp_path: Path) -> None:
    save_weights(trained(), tmp_path / "w.safetensors")
    network = Network(CIFAR, weights=str(tmp_path / "w.safetensors")).build(5, seed=9)
    assert same(state(network), state(trained()))


def test_weights_from_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    last = tmp_path / "checkpoints" / "last.ckpt"
    entries = {f"student.{key}": value for key, value in trained().state_dict().items()}
    torch.save({"state_dict": entries, "pytorch-lightning_version": "2.6.6"}, last)
    assert weights_file(str(tmp_path)) == last
    assert same(state(Network(CIFAR, weights=str(tmp_path)).build(5, seed=9)), state(trained()))


def test_a_run_folder_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"the run .* has no checkpoints/last\.ckpt: has it finished\?"):
        Network(CIFAR, weights=str(tmp_path)).build(5)


def test_the_checkpoint_of_an_epoch(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for epoch in (20, 40, 100):
        (folder / f"epoch={epoch}.ckpt").touch()
    assert weights_file(f"{tmp_path}@epoch=40") == folder / "epoch=40.ckpt"
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of epoch 60: it has epochs 20, 40, 100; .*keep_every"):
        weights_file(f"{tmp_path}@epoch=60")


def test_a_run_that_kept_no_epoch(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"epoch 5: it kept none; .* --checkpoints\.keep_every_epochs=N"):
        weights_file(f"{tmp_path}@epoch=5")


@pytest.mark.parametrize("epoch", ["", "0", "-1", "last", "2.5"])
def test_an_epoch_that_is_none(tmp_path: Path, epoch: str) -> None:
    with pytest.raises(ValueError, match=f"RUN@epoch=N needs a whole number N >= 1, got '{epoch}'"):
        weights_file(f"{tmp_path}@epoch={epoch}")


def test_an_epoch_of_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"weights: there is no run folder .*gone"):
        weights_file(f"{tmp_path / 'gone'}@epoch=3")


def test_a_missing_weights_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"weights: there is no file or run folder .*gone\.ckpt"):
        Network(CIFAR, weights=str(tmp_path / "gone.ckpt")).build(5)


def test_a_recipe_is_not_trained_in_python() -> None:
    recipe = Network(CIFAR, weights={"recipe": "configs/teacher.yaml"})
    with pytest.raises(ValueError, match=r"configs/teacher\.yaml.* must be trained first: .*kd-lightning command"):
        recipe.build(5)


@pytest.mark.parametrize("weights", [{}, {"recipes": "a"}, {"recipe": "a", "seed": "1"}])
def test_another_dict_is_no_recipe(weights: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"weights must be a text or \{recipe: CONFIG\}, got \{"):
        Network(CIFAR, weights=weights)


def test_the_sha256_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(trained(), path)
    right = file_sha256(path)
    assert same(state(Network(CIFAR, weights=str(path), sha256=right).build(5)), state(trained()))
    with pytest.raises(ValueError, match=f"has sha256 {right}, but sha256 {'0' * 64} was asked for"):
        Network(CIFAR, weights=str(path), sha256="0" * 64).build(5)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_weights_for_other_classes_are_refused(tmp_path: Path, role: Any) -> None:
    save_weights(trained(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="has 5 classes, the network 6"):
        Network(CIFAR, weights=str(tmp_path / "w.safetensors")).build(6, role=role)


def test_what_is_saved_is_loaded_by_plain_code(tmp_path: Path) -> None:
    save_weights(trained(), tmp_path / "w.safetensors")
    plain = timm.create_model(CIFAR, num_classes=5)
    load_weights(plain, tmp_path / "w.safetensors")
    assert same(state(plain), state(trained()))


def test_a_pretrained_teacher_must_have_the_classes_of_the_data() -> None:
    with pytest.raises(ValueError, match=r"teacher resnet18: its pretrained head has 1000 classes, the data 100"):
        Network("resnet18", weights="pretrained").build(100, role="teacher")


def test_no_pretrained_weights_are_published() -> None:
    with pytest.raises(ValueError, match="no weights of cifar_resnet8 are published"):
        Network(CIFAR, weights="pretrained").build(100, role="teacher")
    with pytest.raises(ValueError, match="has no pretrained weights in timm: give a file as weights"):
        Network(f"{MODULE}.Net", weights="pretrained").build(5)


def test_normalisation_and_resolution() -> None:
    hub = Network("resnet18", weights="pretrained")
    assert hub.from_hub
    assert hub.normalisation() == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert hub.resolution() == 224
    data = Network("resnet18", weights="w.pth")
    assert not data.from_hub
    assert (data.normalisation(), data.resolution()) == (None, None)
    stated = Network("resnet18", weights="pretrained", mean=(0.5,), std=(0.25,), image_size=64)
    assert (stated.normalisation(), stated.resolution()) == (((0.5,), (0.25,)), 64)
