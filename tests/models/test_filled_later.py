from pathlib import Path

import pytest
import torch

from kd_lightning.models import FrozenTeacher, Network, SimKDStudent, Views, filled_later
from kd_lightning.models.filled_later import is_filled_later

GONE = Network("cifar_resnet8", weights="nowhere/last.ckpt")
SMALL = {"name": "cifar_resnet8"}


@pytest.mark.parametrize("weights", ["nowhere/last.ckpt", "nowhere#peer=a", {"recipe": "nowhere.yaml"}, "pretrained"])
def test_no_weights_are_needed(weights: str | dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Network("resnet10t" if weights == "pretrained" else "cifar_resnet8", weights=weights)
    plain = Network(recipe.name).build(5, 1, seed=3).state_dict()
    with filled_later():
        made = recipe.build(5, 1, seed=3).state_dict()
    assert all(torch.equal(value, plain[key]) for key, value in made.items())


def test_afterwards_they_are_again() -> None:
    with pytest.raises(RuntimeError, match="stopped"), filled_later():
        assert is_filled_later()
        raise RuntimeError("stopped")
    with pytest.raises(FileNotFoundError, match="there is no file or run folder nowhere"):
        GONE.build(5)


def test_nor_for_the_networks_inside_of_one_and_a_teacher() -> None:
    teacher = FrozenTeacher(GONE)
    with filled_later():
        assert SimKDStudent(SMALL, SMALL, num_classes=5)(torch.zeros(1, 3, 16, 16)).shape == (1, 5)
        teacher.setup(5, Views((3, 16, 16)), ["logits"])
    assert teacher.network is not None
