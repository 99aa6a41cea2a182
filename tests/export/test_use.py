import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kd_lightning.export import Format, Part, Preprocessing, part
from kd_lightning.export.use import library, usage
from kd_lightning.models import filled_later

SHOWN = Preprocessing((1, 32, 32))
MODULE = "nets_of_somebody"
SOURCE = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes: int, width: int = 4) -> None:
        super().__init__(nn.Flatten(), nn.Linear(1024, width), nn.Linear(width, num_classes))
"""
INNER = {"name": "cifar_resnet8", "kwargs": {"widths": [2, 2, 4, 8]}}
TAUGHT = {"name": "cifar_resnet8", "weights": "/home/me/teacher.ckpt"}
RECIPES: dict[str, dict[str, Any]] = {
    "timm": {"name": "resnet10t", "kwargs": {"stem_width": 8}},
    "hub": {"name": "hf-hub:timm/resnet10t.c3_in1k", "kwargs": {"stem_width": 8}},
    "own": {"name": f"{MODULE}.Net", "kwargs": {"width": 3}},
    "kd-lightning": INNER,
    "class": {"name": "kd_lightning.models.MultiExitNetwork", "kwargs": {"network": INNER, "only": 2}},
    "simkd": {"name": "kd_lightning.models.SimKDStudent", "kwargs": {"student": INNER, "teacher": TAUGHT}},
}
OURS = ("kd-lightning", "class", "simkd")


@pytest.fixture(autouse=True)
def own_module(importable: Callable[[str, str], None]) -> None:
    importable(MODULE, SOURCE)


def built(recipe: str) -> Part:
    found = part.bare(RECIPES[recipe])
    with filled_later():
        return Part("", found.build(4, 1, seed=7).eval(), found)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_code_for_a_state_dict_runs(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(part, "load_model_config_from_hf", lambda where: ({}, "resnet10t", {"in_chans": 3}))
    exported = built(recipe)
    save_file(exported.network.state_dict(), "model.safetensors")
    text = usage("model.safetensors", "safetensors", exported, 4, SHOWN)
    found = re.search(r"```python\n(.*)\n```", text, re.DOTALL)
    assert found is not None
    names: dict[str, nn.Module] = {}
    exec(found[1], names)
    images: Tensor = torch.randn(2, 1, 32, 32)
    assert torch.equal(names["network"](images), exported.network(images))
    assert ("pip install kd-lightning" in text) == (recipe in OURS)
    assert ("local-dir:" in text) == (recipe in ("timm", "hub", "kd-lightning"))
    assert "/home/me" not in text


@pytest.mark.parametrize(
    ("recipe", "format", "expected"),
    [
        ("timm", "safetensors", "timm"),
        ("kd-lightning", "safetensors", "kd-lightning"),
        ("own", "safetensors", "pytorch"),
        ("timm", "onnx", "onnx"),
        ("kd-lightning", "torch_export", "pytorch"),
    ],
)
def test_the_library_that_reads_the_file(recipe: str, format: Format, expected: str) -> None:
    assert library(format, built(recipe)) == expected


def test_without_a_recipe_the_class_is_named() -> None:
    text = usage("m.safetensors", "safetensors", Part("", nn.Flatten(), None), 4, SHOWN)
    assert text == "`m.safetensors` holds the state dict of `torch.nn.modules.flatten.Flatten`."
