from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.models import Network, load_weights, save_weights
from kd_lightning.models.position_embeddings import resized, with_resized
from kd_lightning.models.weights import read_weights

SMALL, LARGE = {"patch_size": 8, "depth": 1, "img_size": 32}, {"patch_size": 8, "depth": 1, "img_size": 48}
NAME = "deit_tiny_distilled_patch16_224"


def tokens(side: int, in_front: int = 2, dim: int = 3) -> Tensor:
    return torch.randn(1, in_front + side**2, dim, generator=torch.Generator().manual_seed(side))


def test_the_grid_is_interpolated_and_the_tokens_in_front_are_kept() -> None:
    positions = tokens(2)
    found = resized(positions, tokens(4), (4, 4))
    assert torch.equal(found[:, :2], positions[:, :2])
    grid = positions[:, 2:].reshape(1, 2, 2, 3).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, (4, 4), mode="bicubic").permute(0, 2, 3, 1).reshape(1, 16, 3)
    torch.testing.assert_close(found[:, 2:], expected)


def test_a_grid_need_not_be_square_and_positions_that_are_equal_stay_so() -> None:
    found = resized(torch.full((1, 5, 3), 0.7), torch.zeros(1, 13, 3), (3, 4))
    torch.testing.assert_close(found, torch.full((1, 13, 3), 0.7))


def test_the_same_size_is_left_alone() -> None:
    positions = tokens(4)
    assert resized(positions, tokens(4), (4, 4)) is positions


def test_maps_are_interpolated() -> None:
    positions = torch.arange(4.0).reshape(1, 1, 2, 2)
    found = resized(positions, torch.zeros(1, 1, 4, 4), None)
    assert found.shape == (1, 1, 4, 4)
    assert found.mean().item() == pytest.approx(1.5)
    assert found[0, 0, 0, 0] < found[0, 0, 0, 3] < found[0, 0, 3, 0] < found[0, 0, 3, 3]


@pytest.mark.parametrize(
    ("positions", "wanted", "grid", "message"),
    [
        (torch.zeros(1, 7, 3), torch.zeros(1, 18, 3), (4, 4), "5 patches are no square grid"),
        (torch.zeros(1, 6, 3), torch.zeros(1, 18, 4), (4, 4), r"\[1, 6, 3\] cannot be interpolated to \[1, 18, 4\]"),
        (torch.zeros(1, 6, 3), torch.zeros(1, 3, 4, 4), None, "cannot be interpolated"),
        (torch.zeros(1, 1, 3), torch.zeros(1, 18, 3), (4, 4), "-1 patches are no square grid"),
    ],
)
def test_what_cannot_be_interpolated_is_named(
    positions: Tensor, wanted: Tensor, grid: tuple[int, int] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        resized(positions, wanted, grid)


@pytest.mark.parametrize("name", [NAME, "pit_ti_distilled_224"])
def test_a_recipe_with_resize_starts_from_weights_of_smaller_images(name: str, tmp_path: Path) -> None:
    small, large = ({"img_size": 64}, {"img_size": 96}) if name.startswith("pit") else (SMALL, LARGE)
    start = Network(name, kwargs=small).build(5)
    path = tmp_path / "w.safetensors"
    save_weights(start, path)
    network = Network(name, kwargs=large, weights=str(path), resize=True).build(5)
    state = network.state_dict()
    for key, value in start.state_dict().items():
        assert key == "pos_embed" or torch.equal(state[key], value), key
    fresh = Network(name, kwargs=large).build(5)
    assert not torch.equal(network.get_parameter("pos_embed"), fresh.get_parameter("pos_embed"))
    # Positions are drawn with a deviation of 0.02; smoothed ones keep the mean over the grid, roughly.
    axes = (2, 3) if name.startswith("pit") else 1
    means = [net.get_parameter("pos_embed").mean(dim=axes) for net in (network, start)]
    assert torch.corrcoef(torch.stack([mean.flatten() for mean in means]))[0, 1] > 0.7


def test_a_wrappers_prefix_does_not_matter(tmp_path: Path) -> None:
    start = Network(NAME, kwargs=SMALL).build(5)
    torch.save({f"student.{key}": value for key, value in start.state_dict().items()}, tmp_path / "w.pt")
    plain = Network(NAME, kwargs=LARGE).build(5)
    load_weights(plain, tmp_path / "w.pt", resize=True)
    expected = with_resized(start.state_dict(), plain)["pos_embed"]
    assert torch.equal(plain.get_parameter("pos_embed"), expected)


def test_without_resize_the_error_says_what_is_right(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(Network(NAME, kwargs=SMALL).build(5), path)
    with pytest.raises(ValueError, match=r"pos_embed: file \[1, 18, 192\].*\n.*interpolated with resize: true"):
        Network(NAME, kwargs=LARGE, weights=str(path)).build(5)


def test_other_misfits_stay_errors(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(Network(NAME, kwargs=SMALL).build(5), path)
    with pytest.raises(ValueError, match="5 classes, the network 6"):
        Network(NAME, kwargs=LARGE, weights=str(path), resize=True).build(6)


def test_a_network_without_positions_is_named(tmp_path: Path) -> None:
    network = timm.create_model("resnet10t", num_classes=3)
    save_weights(network, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="resize: ResNet has no pos_embed"):
        with_resized(read_weights(tmp_path / "w.safetensors"), network)


def test_resize_without_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="resize needs weights"):
        Network(NAME, resize=True)
