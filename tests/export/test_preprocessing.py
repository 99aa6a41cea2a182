import json
from pathlib import Path

import pytest
import timm
import timm.models._hub as hub
import torch
from timm.data import resolve_data_config
from torch import nn

from kd_lightning.export import Part, Preprocessing, is_timms, timm_config
from kd_lightning.models import Network, save_weights

FOLDERS = Preprocessing((3, 64, 64), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1), 0.9, "center", "bicubic")


def test_what_is_not_known_is_left_out() -> None:
    assert Preprocessing((1, 8, 8)).as_json() == {"channels": 1, "input_size": [1, 8, 8]}
    assert FOLDERS.as_json() == {
        "channels": 3,
        "input_size": [3, 64, 64],
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.2, 0.1),
        "crop_pct": 0.9,
        "crop_mode": "center",
        "interpolation": "bicubic",
    }


def test_timm_builds_the_network_from_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Network("resnet10t", {"drop_rate": 0.1})
    network = recipe.build(4, seed=5).eval()
    config = timm_config(Part("", network, recipe), FOLDERS, ["a", "b", "c", "d"], "other.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_weights(network, tmp_path / "other.safetensors")
    made = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(made(images), network(images))
    # The hub: its files are in that folder.
    monkeypatch.setattr(hub, "hf_hub_download", lambda repo_id, filename, **options: str(tmp_path / filename))
    pushed = timm.create_model("hf-hub:me/net", pretrained=True).eval()
    assert torch.equal(pushed(images), network(images))
    wanted = resolve_data_config(model=made)
    assert (wanted["input_size"], wanted["crop_pct"], wanted["interpolation"]) == ((3, 64, 64), 0.9, "bicubic")
    assert (tuple(wanted["mean"]), tuple(wanted["std"])) == (FOLDERS.mean, FOLDERS.std)
    assert made.pretrained_cfg["label_names"] == ["a", "b", "c", "d"]


def test_what_timm_does_not_build_by_name(small: nn.Module) -> None:
    assert not is_timms(Part("", small, None))
    assert not is_timms(Part("", small, Network("torchvision.models.resnet18")))
    assert not is_timms(Part("", small, Network("resnet18"), "two heads"))
    assert is_timms(Part("", small, Network("resnet18")))
    with pytest.raises(ValueError, match=r"config\.json is for networks that timm builds by name"):
        timm_config(Part("", small, None), FOLDERS, ["a"], "m.safetensors")
