import re

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kd_lightning.export import Format, Part, Preprocessing
from kd_lightning.export.use import library, usage
from kd_lightning.models import Network

SHOWN = Preprocessing((1, 32, 32))
INNER = {"name": "cifar_resnet8", "kwargs": {"widths": [2, 2, 4, 8]}}
RECIPES = {
    "timm": Network("resnet10t", {"stem_width": 8}),
    "kd-lightning": Network("cifar_resnet8", {"widths": [2, 2, 4, 8]}),
    "class": Network("kd_lightning.models.MultiExitNetwork", {"network": INNER, "only": 2}),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_code_for_a_state_dict_runs(recipe: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    network = RECIPES[recipe].build(4, 1, seed=7).eval()
    save_file(network.state_dict(), "model.safetensors")
    text = usage("model.safetensors", "safetensors", Part("", network, RECIPES[recipe]), 4, SHOWN)
    found = re.search(r"```python\n(.*)\n```", text, re.DOTALL)
    assert found is not None
    names: dict[str, nn.Module] = {}
    exec(found[1], names)
    images: Tensor = torch.randn(2, 1, 32, 32)
    assert torch.equal(names["network"](images), network(images))
    assert ("pip install kd-lightning" in text) == (recipe != "timm")
    assert ("local-dir:" in text) == (recipe != "class")


@pytest.mark.parametrize(
    ("recipe", "format", "expected"),
    [
        ("timm", "safetensors", "timm"),
        ("kd-lightning", "safetensors", "kd-lightning"),
        ("timm", "onnx", "onnx"),
        ("kd-lightning", "torch_export", "pytorch"),
    ],
)
def test_the_library_that_reads_the_file(recipe: str, format: Format, expected: str) -> None:
    assert library(format, Part("", RECIPES[recipe].build(4, 1), RECIPES[recipe])) == expected


def test_without_a_recipe_the_class_is_named() -> None:
    text = usage("m.safetensors", "safetensors", Part("", nn.Flatten(), None), 4, SHOWN)
    assert text == "`m.safetensors` holds the state dict of `torch.nn.modules.flatten.Flatten`."
