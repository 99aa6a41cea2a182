import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kd_lightning.models.taps import install, tapped
from kd_lightning.models.token_maps import prefix_tokens, to_map, to_tokens


class Patches(nn.Module):
    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.grid_size = (rows, columns)


class Transformer(nn.Module):
    def __init__(self, prefix: int, rows: int, columns: int) -> None:
        super().__init__()
        self.num_prefix_tokens = prefix
        self.patch_embed = Patches(rows, columns)


class ChannelsLast(nn.Module):
    output_fmt = "NHWC"


PLAIN = nn.Identity()


def numbered(prefix: int, rows: int, columns: int, channels: int = 2) -> Tensor:
    """Tokens [1, prefix + rows x columns, channels]: patch (i, j) holds 10 i + j and its negative, a prefix 999."""
    patches = torch.tensor([[10.0 * i + j for i in range(rows) for j in range(columns)]])
    tokens = torch.stack([patches, -patches], dim=-1)[..., :channels]
    return torch.cat([torch.full((1, prefix, channels), 999.0), tokens], dim=1)


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_class_and_distillation_tokens_are_dropped_and_patches_keep_their_places(prefix: int) -> None:
    made = to_map(numbered(prefix, 2, 3), Transformer(prefix, 2, 3))
    expected = torch.tensor([[0.0, 1.0, 2.0], [10.0, 11.0, 12.0]])
    assert torch.equal(made, torch.stack([expected, -expected])[None])


def test_tokens_without_prefix_lose_none() -> None:
    # As the output of the patch embedding, to which the class token is added later.
    made = to_map(numbered(0, 2, 3), Transformer(1, 2, 3))
    assert torch.equal(made[0, 0], torch.tensor([[0.0, 1.0, 2.0], [10.0, 11.0, 12.0]]))


def test_tokens_that_do_not_fill_the_grid_fill_a_square() -> None:
    # As behind a layer that makes patches fewer.
    assert to_map(numbered(0, 2, 2), Transformer(0, 4, 4)).shape == (1, 2, 2, 2)
    assert to_map(numbered(0, 3, 3), PLAIN)[0, 0].tolist() == [[0, 1, 2], [10, 11, 12], [20, 21, 22]]


def test_tokens_that_fill_no_grid_are_an_error() -> None:
    with pytest.raises(ValueError, match="6 patch tokens fill neither the network's grid nor a square one"):
        to_map(torch.zeros(1, 6, 2), PLAIN)
    with pytest.raises(ValueError, match="5 patch tokens fill neither"):
        to_map(torch.zeros(1, 6, 2), Transformer(1, 4, 4))


@pytest.mark.parametrize("shape", [(2, 3), (4,), (1, 2, 3, 4, 5)])
def test_what_is_neither_tokens_nor_a_map_is_an_error(shape: tuple[int, ...]) -> None:
    for shaped in (to_map, to_tokens):
        with pytest.raises(ValueError, match=r"only tokens \[N, L, C\] and maps can be made a map, got \("):
            shaped(torch.zeros(shape), PLAIN)


def test_a_map_is_given_back_as_it_is() -> None:
    feature = torch.randn(2, 3, 4, 5)
    assert to_map(feature, PLAIN) is feature
    assert to_map(feature, Transformer(1, 4, 5)) is feature


def test_a_map_with_channels_last_is_turned() -> None:
    feature = torch.randn(2, 4, 5, 3)
    made = to_map(feature, ChannelsLast())
    assert made.shape == (2, 3, 4, 5)
    assert torch.equal(made[1, :, 2, 3], feature[1, 2, 3])


def test_tokens_of_a_map_go_row_by_row() -> None:
    feature = torch.randn(2, 3, 4, 5)
    tokens = to_tokens(feature, PLAIN)
    assert tokens.shape == (2, 20, 3)
    assert torch.equal(tokens[1, 2 * 5 + 3], feature[1, :, 2, 3])


def test_tokens_of_tokens_lose_the_prefix() -> None:
    tokens = numbered(2, 2, 3)
    assert torch.equal(to_tokens(tokens, Transformer(2, 2, 3)), tokens[:, 2:])


@given(st.integers(0, 2), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_there_and_back(prefix: int, rows: int, columns: int, channels: int) -> None:
    network, feature = Transformer(prefix, rows, columns), torch.randn(2, channels, rows, columns)
    assert torch.equal(to_map(to_tokens(feature, network), network), feature)


def test_the_gradient_passes_to_the_patches_and_not_to_the_prefix() -> None:
    tokens = numbered(1, 2, 3).requires_grad_()
    to_map(tokens, Transformer(1, 2, 3)).sum().backward()
    assert tokens.grad is not None
    assert tokens.grad[0].tolist() == [[0.0, 0.0]] + [[1.0, 1.0]] * 6


@pytest.mark.parametrize(
    ("name", "prefix"), [("vit_tiny_patch16_224", 1), ("deit_tiny_distilled_patch16_224", 2), ("cifar_resnet8", 0)]
)
def test_networks_say_their_prefix(name: str, prefix: int) -> None:
    assert prefix_tokens(timm.create_model(name)) == prefix


@pytest.mark.parametrize(("name", "prefix"), [("vit_tiny_patch16_224", 1), ("deit_tiny_distilled_patch16_224", 2)])
def test_a_taps_map_holds_the_patches_of_its_own_network(name: str, prefix: int) -> None:
    network = timm.create_model(name, img_size=(16, 24), patch_size=4, depth=1, num_classes=3).eval()
    names = ["blocks.0", "blocks.0:map", "blocks.0:tokens", "patch_embed", "patch_embed:map"]
    install(network, names)
    with tapped(network, names) as taps:
        network(torch.randn(2, 3, 16, 24))
    tokens = taps["blocks.0"]
    assert tokens.shape == (2, prefix + 24, 192)
    assert taps["blocks.0:map"].shape == (2, 192, 4, 6)
    for i, j in ((0, 0), (1, 5), (3, 2)):
        assert torch.equal(taps["blocks.0:map"][:, :, i, j], tokens[:, prefix + 6 * i + j])
        assert torch.equal(taps["patch_embed:map"][:, :, i, j], taps["patch_embed"][:, 6 * i + j])
    assert torch.equal(taps["blocks.0:tokens"], tokens[:, prefix:])
