"""CKA: what it must and must not notice, by hand and against the definition by HSIC."""

import re

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import kd_lightning.models
from kd_lightning.report import cka
from kd_lightning.report.cka import linear_cka, stage_cka

assert kd_lightning.models  # registers the networks


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_hsic(x: Tensor, y: Tensor) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with the centring matrix, as Kornblith et al. define it."""
    count = len(x)
    centring = np.eye(count) - 1 / count
    flat = [each.flatten(1).double().numpy() for each in (x, y)]
    one, other = (centring @ each @ each.T @ centring for each in flat)
    return float(np.trace(one @ other) / np.sqrt(np.trace(one @ one) * np.trace(other @ other)))


@pytest.mark.parametrize(("own", "other"), [(4, 6), (30, 50), (4, 50), (19, 20)])
def test_it_is_the_definition_by_hsic_in_either_form(own: int, other: int) -> None:
    x, y = features(20, own) + 3, features(20, other, seed=1)
    assert linear_cka(x, y).item() == pytest.approx(by_hsic(x, y))


def test_a_value_by_hand() -> None:
    # Centred, x is (1, 0, -1) and y is (1, -2, 1) / 3 beside x itself: Y'X = (0, 2).
    x, y = torch.tensor([[1.0], [0], [-1]]), torch.tensor([[1.0, 1], [0, 0], [1, -1]])
    assert linear_cka(x, y).item() == pytest.approx(4 / (2 * np.sqrt((2 / 3) ** 2 + 2**2)))


def test_features_are_as_themselves_rotated_scaled_and_moved() -> None:
    x = features(30, 5)
    rotation = torch.linalg.qr(features(5, 5, seed=1)).Q
    assert linear_cka(x, x).item() == pytest.approx(1)
    assert linear_cka(x, 7 * x @ rotation + 2).item() == pytest.approx(1, abs=1e-6)
    y = features(30, 8, seed=2)
    assert linear_cka(x @ rotation, 0.1 * y).item() == pytest.approx(linear_cka(x, y).item(), abs=1e-6)


def test_an_invertible_map_is_noticed() -> None:
    x = features(30, 5)
    assert linear_cka(x, x * torch.tensor([100.0, 1, 1, 1, 1])).item() < 0.9


def test_maps_are_flattened_and_features_that_never_change_have_no_cka() -> None:
    x = features(10, 2, 3, 3)
    assert linear_cka(x, x.flatten(1)).item() == pytest.approx(1)
    assert linear_cka(x, torch.zeros(10, 4)).isnan()


def test_other_numbers_of_samples_are_named() -> None:
    with pytest.raises(ValueError, match="two at least, got 3 and 4"):
        linear_cka(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="got 1 and 1"):
        linear_cka(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="got 3 and 4"):
        stage_cka(nn.Identity(), nn.Identity(), torch.zeros(3, 1, 8, 8), torch.zeros(4, 1, 8, 8))


def small(name: str = "cifar_resnet8") -> nn.Module:
    return timm.create_model(name, num_classes=10, in_chans=1)


def by_forward_features(network: nn.Module, images: Tensor) -> list[Tensor]:
    """The ends of the stages by hooks of one's own."""
    seen: list[Tensor] = []
    hooks = [stage.register_forward_hook(lambda *args: seen.append(args[2])) for stage in network.eval().stages]
    with torch.no_grad():
        network(images)
    for hook in hooks:
        hook.remove()
    return seen


def test_stages_of_two_networks_are_compared() -> None:
    student, teacher = small(), small("cifar_resnet20")
    images, enlarged = features(70, 1, 8, 8), features(70, 1, 16, 16, seed=1)  # more than one batch
    found = stage_cka(student, teacher, images, enlarged)
    own, others = by_forward_features(student, images), by_forward_features(teacher, enlarged)
    expected = [[by_hsic(each, other) for other in others] for each in own]
    assert found.shape == (3, 3)
    assert found.numpy() == pytest.approx(np.array(expected), abs=1e-6)


def test_a_network_is_like_itself_stage_by_stage() -> None:
    network, images = small(), features(20, 1, 8, 8)
    found = stage_cka(network, network, images, images)
    assert found.diag().tolist() == pytest.approx([1, 1, 1])
    assert found.equal(found.T)


def test_a_vision_transformer_has_stages_too() -> None:
    vit = timm.create_model(
        "deit_tiny_patch16_224",
        img_size=8,
        patch_size=2,
        embed_dim=32,
        depth=4,
        num_heads=2,
        num_classes=10,
        in_chans=1,
    )
    found = stage_cka(small(), vit, images := features(20, 1, 8, 8), images)
    assert found.shape == (3, 4)
    assert ((found > 0) & (found < 1)).all()


def test_large_maps_are_averaged_over_their_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, images = small(), small(), features(20, 1, 8, 8)
    monkeypatch.setattr(cka, "LARGE", 1023)  # the first stage has 16 x 8 x 8 values
    found = stage_cka(student, teacher, images, images)
    own, others = ([each.mean(dim=(2, 3)) for each in by_forward_features(net, images)] for net in (student, teacher))
    expected = [[by_hsic(each, other) for other in others] for each in own]
    assert found.numpy() == pytest.approx(np.array(expected), abs=1e-6)


def test_modes_statistics_and_gradients_stay_as_they_are() -> None:
    student, teacher = small().train(), small().eval()
    before = {key: value.clone() for key, value in student.state_dict().items()}
    found = stage_cka(student, teacher, images := features(8, 1, 8, 8), images)
    assert not found.requires_grad
    assert student.training
    assert not teacher.training
    assert all(value.equal(before[key]) for key, value in student.state_dict().items())


def test_a_network_without_stages_is_named() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ValueError, match=re.escape("Sequential has no maps [N, C, H, W], so no stages")):
        stage_cka(small(), flat, images := features(4, 1, 8, 8), images)
