import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.models import MultiExitNetwork, Network
from kd_lightning.models.exits import HasExits, bottleneck
from kd_lightning.models.tap_plan import classifier_of, plan
from kd_lightning.models.taps import install, tapped

RESNET8: dict[str, Any] = {"name": "cifar_resnet8", "kwargs": {"widths": [2, 2, 4, 8]}}
VIT: dict[str, Any] = {
    "name": "vit_tiny_patch16_224",
    "kwargs": {"img_size": 32, "patch_size": 8, "depth": 4, "embed_dim": 48},
}
SHAPE = (3, 32, 32)


def exited(network: Any = RESNET8, **options: Any) -> MultiExitNetwork:
    return MultiExitNetwork(network, num_classes=10, **options).eval()


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def exits_of(network: MultiExitNetwork, image: Tensor) -> list[Tensor]:
    install(network, network.branch_taps())
    with torch.no_grad(), tapped(network, network.branch_taps()) as taps:
        network(image)
    return [taps[tap] for tap in network.branch_taps()]


class Flat(nn.Module):
    """No maps at all."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits


class Stiff(nn.Module):
    """Does not run without its second layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 6, 3, 2), nn.Linear(6 * 49, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        logits: Tensor = self.head(x.view(len(x), 6, 49).flatten(1))
        return logits


def test_the_answer_is_the_networks_own() -> None:
    network, plain = exited(), Network(**RESNET8).build(10).eval()
    plain.load_state_dict(network.network.state_dict())
    image = torch.randn(4, *SHAPE)
    assert torch.equal(network(image), plain(image))


def test_an_exit_is_its_bottleneck_mean_and_classifier_on_the_stages_map() -> None:
    network, image = exited(), torch.randn(3, *SHAPE)
    plain: Any = network.network
    one = plain.stages[0](plain.stem(image))
    for number, stage in enumerate((one, plain.stages[1](one)), start=1):
        layers: Any = network.exits[str(number)]
        last = layers.bottleneck(stage)
        assert last.shape == (3, 8, 8, 8)  # as the deepest
        torch.testing.assert_close(exits_of(network, image)[number - 1], layers.fc(last.mean(dim=(2, 3))))
    assert isinstance(network, HasExits)
    assert network.branch_taps() == ["exits.1", "exits.2"]


def test_bottleneck_by_hand() -> None:
    convolutions = [layer for layer in bottleneck(32, 64, 4) if isinstance(layer, nn.Conv2d)]
    assert [tuple(layer.weight.shape) for layer in convolutions] == [(16, 32, 1, 1), (16, 16, 4, 4), (64, 16, 1, 1)]
    assert bottleneck(32, 64, 4)(torch.randn(2, 32, 32, 32)).shape == (2, 64, 8, 8)
    assert bottleneck(3, 64, 1)(torch.randn(2, 3, 5, 5)).shape == (2, 64, 5, 5)
    assert size(bottleneck(3, 64, 1)) == 3 * 3 + 3 * 3 * 9 + 3 * 64 + 2 * (3 + 3 + 64)  # not wider than the stage


@pytest.mark.parametrize(
    ("network", "options"),
    [
        (RESNET8, {}),
        ({"name": "cifar_wrn_16_2"}, {}),
        ({"name": "cifar_vgg8"}, {}),
        ({"name": "cifar_mobilenetv2"}, {}),
        ({"name": "resnet18"}, {"image_size": 64}),
        ({"name": "regnety_002"}, {"image_size": 64}),
        (VIT, {}),
        ({"name": "convnext_atto"}, {"exits": ["stage:1", "stages.2"], "image_size": 64}),
    ],
    ids=lambda value: value.get("name", "") if isinstance(value, dict) else None,
)
def test_an_exit_alone_answers_as_within_and_the_layers_behind_it_are_gone(
    network: dict[str, Any], options: dict[str, Any]
) -> None:
    whole, side = exited(network, **options), options.get("image_size", 32)
    for parameter in whole.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    image, sizes = torch.randn(2, 3, side, side), []
    for number, expected in enumerate(exits_of(whole, image), start=1):
        alone = exited(network, only=number, **options)
        parts = {key: whole.state_dict()[key] for key in alone.state_dict()}
        assert {key.split(".")[1] for key in parts if key.startswith("exits.")} == {str(number)}
        alone.load_state_dict(parts)
        with torch.no_grad():
            assert torch.equal(alone(image), expected)
        assert alone.branch_taps() == []
        sizes.append(size(alone))
    assert sizes == sorted(sizes)
    assert sizes[-1] < size(whole.network)


def test_symbols_are_of_the_network_of_an_exit_alone_and_of_an_exit_within() -> None:
    taps = ["stages", "last_stage", "last_map", "embedding", "stem+stages", "stage:1:preact"]
    whole, names = exited(), plan(exited(), taps, SHAPE).names
    assert names["stages"] == [f"network.stages.{index}" for index in range(3)]
    assert names["embedding"] == "network.fc:in"
    assert names["last_map"] == "network.neck"
    assert names["stem+stages"][0] == "network.stem"
    assert names["stage:1:preact"] == "network.stages.0.0.act2:in"
    assert classifier_of(whole, SHAPE) is whole.network.get_submodule("fc")
    own = plan(exited(only=2), taps[:4], SHAPE).names
    assert own["stages"] == ["network.stages.0", "network.stages.1", "exits.2.bottleneck"]
    assert own["last_stage"] == own["last_map"] == "exits.2.bottleneck"
    assert own["embedding"] == "exits.2.fc:in"
    assert whole.exit_taps("exits.2") == {name: own[name] for name in ("embedding", "last_map", "last_stage")}
    tokens = plan(exited(VIT), ["stages", "embedding"], SHAPE)
    assert tokens.shapes["stages"] == [(2, 48, 4, 4)] * 4


def test_starts_are_named_by_who_builds_it_and_by_the_exit() -> None:
    recipe = Network("kd_lightning.models.MultiExitNetwork", {"network": VIT})  # whose exits are of one shape
    one, again, other = (recipe.build(10, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(again[key], value) for key, value in one.items())
    for key in ("network.blocks.0.attn.qkv.weight", "exits.1.fc.weight"):
        assert not torch.equal(one[key], other[key])
    assert not torch.equal(one["exits.1.fc.weight"], one["exits.2.fc.weight"])
    alone = Network(recipe.name, {**recipe.kwargs, "only": 2}).build(10, seed=1).state_dict()
    assert all(torch.equal(one[key], value) for key, value in alone.items())


def test_a_module_is_copied() -> None:
    plain = Network(**RESNET8).build(10)
    taken = exited(plain, only=1)
    assert size(plain) == size(Network(**RESNET8).build(10))
    assert torch.equal(taken.state_dict()["network.stem.conv.weight"], plain.get_parameter("stem.conv.weight"))


@pytest.mark.parametrize("only", [None, 1])
def test_a_copy_of_it_answers_the_same(only: int | None) -> None:
    network, image = exited(only=only), torch.randn(2, *SHAPE)
    copied = pickle.loads(pickle.dumps(network))
    assert torch.equal(copied(image), network(image))


def test_an_exit_alone_is_traced_for_export(tmp_path: Path) -> None:
    network, image = exited(only=1), torch.randn(2, *SHAPE)
    program = torch.export.export(network, (image,), strict=False)
    torch.testing.assert_close(program.module()(image), network(image))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": 0}, r"only must be in 1 … 2, got 0"),
        ({"only": 3}, r"only must be in 1 … 2, got 3"),
        (
            {"exits": []},
            r"exits must be submodules of CifarResNet that run once.*got \[\]; its stages are \['stages.0'",
        ),
        ({"exits": ["stages.7"]}, "exits must be submodules of CifarResNet"),
        ({"exits": ["stages.1", "stages.0"]}, "from shallow to deep"),
        ({"exits": ["fc"]}, "exits: CifarResNet cannot have them: only tokens"),
        ({"network": Flat(), "exits": ["body"]}, "Flat has no maps"),
        (
            {"network": Stiff(), "exits": ["first"], "only": 1},
            "only: Stiff does not run without what follows 'first:map'",
        ),
    ],
)
def test_faults_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiExitNetwork(**({"network": RESNET8, "num_classes": 10} | options))


def saved(folder: Path) -> tuple[Path, MultiExitNetwork]:
    whole = exited()
    for parameter in whole.parameters():
        nn.init.normal_(parameter)
    state = {f"student.networks.net.{key}": value for key, value in whole.state_dict().items()}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2"}, file := folder / "last.ckpt")
    return file, whole


def loaded(file: Path, peer: str, plain: bool = False, **options: Any) -> nn.Module:
    name = "kd_lightning.models.MultiExitNetwork"
    kwargs = RESNET8["kwargs"] if plain else {"network": RESNET8, **options}
    return Network(RESNET8["name"] if plain else name, kwargs, weights=f"{file}#peer={peer}").build(10).eval()


def test_all_of_it_an_exit_or_the_plain_network_is_taken_out(tmp_path: Path) -> None:
    file, whole = saved(tmp_path)
    image = torch.randn(2, *SHAPE)
    expected = exits_of(whole, image)
    with torch.no_grad():
        for number in (1, 2):
            assert torch.equal(loaded(file, f"net_{number}", only=number)(image), expected[number - 1])
        assert torch.equal(loaded(file, "net", plain=True)(image), whole(image))
        assert torch.equal(loaded(file, "net")(image), whole(image))


@pytest.mark.parametrize(
    ("peer", "options", "message"),
    [
        ("net_1", {"only": 2}, "peer net_1 of .* is an exit: build it as a MultiExitNetwork with only: 1"),
        ("net_1", {}, "is an exit"),
        ("net_1", {"plain": True}, "with only: 1, got CifarResNet"),
        ("net_3", {"only": 2}, r"there is no exit 3: there are \[1, 2\]"),
        ("net", {"only": 1}, "does not fit the network MultiExitNetwork"),
    ],
)
def test_what_does_not_fit_is_not_taken(tmp_path: Path, peer: str, options: dict[str, Any], message: str) -> None:
    file, _ = saved(tmp_path)
    with pytest.raises(ValueError, match=message):
        loaded(file, peer, **options)
