import copy
import pickle
import weakref

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.models.taps import Place, install, place, probe, tapped


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.relu(self.bn(self.conv(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1 = Block()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 5)
        self.unused = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.layer1(x)).flatten(1))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(self.shared(x))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(x)[0]


IMAGES = torch.linspace(-2, 2, 2 * 3 * 6 * 6).view(2, 3, 6, 6)


def test_outputs_inputs_and_nested_names() -> None:
    net = Net().eval()
    names = ["layer1", "layer1.bn", "fc:in", "fc", "logits"]
    install(net, names)
    with tapped(net, names) as taps:
        logits = net(IMAGES)
    layer1 = net.layer1(IMAGES)
    assert set(taps) == {"layer1", "layer1.bn", "fc:in", "fc"}  # the logits are what the forward returns
    assert torch.equal(taps["layer1"], layer1)
    assert torch.equal(taps["layer1.bn"], net.layer1.bn(net.layer1.conv(IMAGES)))
    assert torch.equal(taps["fc:in"], layer1.mean((2, 3)))
    assert torch.equal(taps["fc"], logits)


def test_input_and_output_of_one_module() -> None:
    net = Net().eval()
    install(net, ["fc", "fc:in"])
    with tapped(net, ["fc", "fc:in"]) as taps:
        net(IMAGES)
    torch.testing.assert_close(net.fc(taps["fc:in"]), taps["fc"])


def test_a_tap_keeps_its_graph() -> None:
    net = Net()
    install(net, ["layer1"])
    with tapped(net, ["layer1"]) as taps:
        net(IMAGES)
    taps["layer1"].sum().backward()
    assert net.layer1.bn.bias.grad is not None
    assert net.layer1.bn.bias.grad.abs().sum() > 0
    assert net.fc.weight.grad is None


def test_installing_again_adds_no_second_hook() -> None:
    net = Net().eval()
    for _ in range(3):
        install(net, ["fc", "fc:in"])
    assert len(net.fc._forward_hooks) == 1
    with tapped(net, ["fc"]) as taps:
        net(IMAGES)
    assert set(taps) == {"fc"}


def test_an_activation_in_place_is_switched_off() -> None:
    net = Net().eval()
    install(net, ["layer1.bn"])
    with tapped(net, ["layer1.bn"]) as taps:
        net(IMAGES)
    assert not net.layer1.relu.inplace
    assert (taps["layer1.bn"] < 0).any()


def test_without_taps_an_activation_stays_in_place() -> None:
    net = Net()
    install(net, ["logits"])
    assert net.layer1.relu.inplace
    assert not any(module._forward_hooks for module in net.modules())


def test_an_unknown_name_lists_the_nearest_first() -> None:
    with pytest.raises(ValueError, match=r"tap 'layer1\.bm': Net has no such submodule") as error:
        install(Net(), ["layer1.bm"])
    listed = str(error.value).partition("nearest first: ")[2]
    assert listed.startswith("layer1.bn, ")
    assert listed.endswith("; or take 'logits'")
    assert all(name in listed for name in ("layer1.conv", "pool", "fc", "unused"))


def test_a_long_list_is_cut() -> None:
    with pytest.raises(ValueError, match="39, and 10 more; or take 'logits'"):
        install(nn.Sequential(*[nn.Identity() for _ in range(50)]), ["nothing"])


def test_a_copy_has_taps_of_its_own() -> None:
    net = Net().eval()
    install(net, ["fc"])
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.fc.bias += 1
    with tapped(twin, ["fc"]) as taps:
        out = twin(IMAGES)
        net(IMAGES)
    assert torch.equal(taps["fc"], out)


def test_a_copy_that_runs_beside_leaves_no_trace() -> None:
    net = Net().eval()
    install(net, ["fc"])
    twin = copy.deepcopy(net)
    with tapped(net, ["fc"]) as taps:
        logits = net(IMAGES)
        twin(3 * IMAGES)
    assert torch.equal(taps["fc"], logits)


def test_a_pickle_is_as_good() -> None:
    net = Net().eval()
    install(net, ["fc"])
    back = pickle.loads(pickle.dumps(net.fc))
    with tapped(nn.Sequential(back), ["0"]) as taps:
        out = back(torch.ones(1, 4))
    assert torch.equal(taps["0"], out)


def test_a_module_that_runs_twice_is_refused() -> None:
    net = Twice()
    install(net, ["shared"])
    with pytest.raises(ValueError, match="tap 'shared' ran 2 times"), tapped(net, ["shared"]):
        net(torch.ones(1, 2))


def test_a_module_that_does_not_run_is_refused() -> None:
    net = Net().eval()
    install(net, ["unused"])
    with pytest.raises(ValueError, match="tap 'unused' ran 0 times"), tapped(net, ["unused"]):
        net(IMAGES)


def test_an_output_that_is_no_tensor_is_refused() -> None:
    net = Pairs()
    install(net, ["pair"])
    with pytest.raises(ValueError, match="tap 'pair' gives a tuple, not a Tensor"), tapped(net, ["pair"]):
        net(torch.ones(1, 2))


def test_the_error_of_the_forward_is_the_one_that_is_seen() -> None:
    net = Net().eval()
    install(net, ["fc"])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), tapped(net, ["fc"]):
        net.fc(torch.ones(1, 7))
    with tapped(net, ["fc"]) as taps:
        net(IMAGES)
    assert set(taps) == {"fc"}


def test_outside_the_context_nothing_is_kept() -> None:
    net = Net().eval()
    install(net, ["fc"])
    net(IMAGES)
    with tapped(net, ["fc"]) as taps:
        logits = net(IMAGES)
    later = net(3 * IMAGES)
    assert torch.equal(taps["fc"], logits)
    alive = weakref.ref(later)
    del later
    assert alive() is None


@pytest.mark.parametrize("training", [False, True])
def test_probe_gives_shapes_and_leaves_the_network_as_it_was(training: bool) -> None:
    net = Net().train(training)
    net.pool.eval()
    modes = {name: module.training for name, module in net.named_modules()}
    state, rng = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    shapes = probe(net, ["layer1", "layer1.relu:in", "fc:in", "logits"], (3, 6, 6))
    assert shapes == {
        "layer1": (2, 4, 6, 6),
        "layer1.relu:in": (2, 4, 6, 6),
        "fc:in": (2, 4),
        "logits": (2, 5),
    }
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)


def test_probe_follows_the_precision_of_the_network() -> None:
    assert probe(Net().double(), [], (3, 4, 4)) == {"logits": (2, 5)}


def test_probe_restores_the_modes_when_the_forward_fails() -> None:
    net = Net()
    with pytest.raises(RuntimeError):
        probe(net, ["fc"], (1, 6, 6))
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize(
    ("network", "got"), [(nn.Conv2d(3, 4, 1), r"\(2, 4, 6, 6\)"), (Pair(), "tuple"), (nn.Flatten(0), r"\(216,\)")]
)
def test_probe_refuses_what_gives_no_logits(network: nn.Module, got: str) -> None:
    with pytest.raises(ValueError, match=rf"must return logits \[N, C\], got {got}"):
        probe(network, [], (3, 6, 6))


class Attention(nn.Module):
    """As timm's: probabilities where ``fused_attn`` is False, else a fused function."""

    def __init__(self) -> None:
        super().__init__()
        self.fused_attn = True
        self.attn_drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused_attn:
            return nn.functional.scaled_dot_product_attention(x, x, x)
        rows = self.attn_drop((x @ x.mT / x.shape[-1] ** 0.5).softmax(dim=-1))
        return rows @ x  # type: ignore[no-any-return]


class Tokens(nn.Module):
    """A class token and 2 x 3 patches of 4 figures."""

    num_prefix_tokens = 1

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Flatten(2)
        self.patch_embed.grid_size = (2, 3)  # type: ignore[assignment]
        self.attn = Attention()
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x).mT
        tokens = self.attn(torch.cat([patches.sum(1, keepdim=True), patches], dim=1))
        logits: Tensor = self.fc(tokens[:, 0])
        return logits


GRID = torch.linspace(-1, 1, 2 * 4 * 2 * 3).view(2, 4, 2, 3)


def test_map_and_tokens_drop_the_class_token() -> None:
    net, names = Tokens().eval(), ["attn", "attn:map", "attn:in:map", "attn:tokens", "attn:map:tokens"]
    install(net, names)
    with tapped(net, names) as taps:
        net(GRID)
    out = taps["attn"]
    assert out.shape == (2, 7, 4)
    assert taps["attn:map"].shape == (2, 4, 2, 3)
    assert torch.equal(taps["attn:map"][:, :, 1, 2], out[:, 1 + 5])
    assert torch.equal(taps["attn:map"][:, :, 0, 1], out[:, 1 + 1])
    assert torch.equal(taps["attn:in:map"], GRID)
    assert torch.equal(taps["attn:tokens"], out[:, 1:])
    assert torch.equal(taps["attn:map:tokens"], out[:, 1:])


def test_a_map_of_a_map_is_the_map_and_its_tokens_go_row_by_row() -> None:
    net, names = Net().eval(), ["layer1", "layer1:map", "layer1:tokens", "layer1.relu:in:map"]
    install(net, names)
    with tapped(net, names) as taps:
        net(IMAGES)
    assert torch.equal(taps["layer1:map"], taps["layer1"])
    assert taps["layer1:tokens"].shape == (2, 36, 4)
    assert torch.equal(taps["layer1:tokens"][1, 6 * 2 + 3], taps["layer1"][1, :, 2, 3])
    assert torch.equal(taps["layer1.relu:in:map"].relu(), taps["layer1"])


def test_a_vector_makes_no_map() -> None:
    net = Net().eval()
    install(net, ["fc:map"])
    with pytest.raises(ValueError, match=r"only tokens \[N, L, C\] and maps can be made a map, got \(2, 5\)"):
        probe(net, ["fc:map"], (3, 6, 6))


def test_probabilities_switch_fused_attention_off_and_change_no_answer() -> None:
    net = Tokens().eval()
    fused = net(GRID)
    install(net, ["attn", "fc:in"])
    assert net.attn.fused_attn
    install(net, ["attn:probabilities"])
    assert not net.attn.fused_attn
    with tapped(net, ["attn:probabilities", "attn:in", "attn"]) as taps:
        torch.testing.assert_close(net(GRID), fused)
    rows = taps["attn:probabilities"]
    assert rows.shape == (2, 7, 7)
    torch.testing.assert_close(rows.sum(dim=-1), torch.ones(2, 7))
    torch.testing.assert_close(rows @ taps["attn:in"], taps["attn"])


def test_probabilities_are_tapped_before_dropout() -> None:
    net = Tokens()
    net.attn.attn_drop.p = 0.5
    install(net, ["attn:probabilities"])
    with tapped(net.train(), ["attn:probabilities"]) as taps:
        net(GRID)
    torch.testing.assert_close(taps["attn:probabilities"].sum(dim=-1), torch.ones(2, 7))


def test_probabilities_of_what_is_no_attention_are_an_error() -> None:
    with pytest.raises(ValueError, match="tap 'fc:probabilities': Linear is no attention of timm, with attn_drop"):
        install(Tokens(), ["fc:probabilities"])
    with pytest.raises(ValueError, match="tap 'atn:probabilities': Tokens has no such submodule.*nearest first: attn"):
        install(Tokens(), ["atn:probabilities"])


@pytest.mark.parametrize(
    ("tap", "found"),
    [
        ("a.b", Place("a.b", False, ())),
        ("a.b:in", Place("a.b", True, ())),
        ("a:map", Place("a", False, ("map",))),
        ("a:in:tokens", Place("a", True, ("tokens",))),
        ("a:probabilities", Place("a.attn_drop", True, ())),
        ("a:map:tokens", Place("a", False, ("map", "tokens"))),
    ],
)
def test_the_place_of_a_name(tap: str, found: Place) -> None:
    assert place(tap) == found


@pytest.mark.parametrize(
    ("tap", "got"), [("fc:out", ":out"), ("fc:in:mpa", ":mpa"), ("fc:", ":"), ("fc:x:b", ":b, :x")]
)
def test_an_unknown_suffix_is_an_error(tap: str, got: str) -> None:
    message = f"tap '{tap}': a submodule's name may be followed by :in, :probabilities, :map or :tokens, got {got}$"
    with pytest.raises(ValueError, match=message):
        install(Net(), [tap])
