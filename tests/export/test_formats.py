import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import onnx
import pytest
import safetensors
import torch
from torch import nn

from kd_lightning.export import Format, Part, compare, onnx_answer, require, write
from kd_lightning.export.formats import SUFFIXES
from kd_lightning.models import Network


def test_a_file_is_named_as_its_format() -> None:
    require("safetensors", Path("a/model.safetensors"))
    with pytest.raises(ValueError, match=r"--output of --format torch_export must end in \.pt2, got a\.onnx"):
        require("torch_export", Path("b/a.onnx"))


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"needs the package {package}: pip install 'kd-lightning\[onnx\]'"):
        require("onnx", Path("a.onnx"))
    require("torch_export", Path("a.pt2"))


def test_onnx_takes_any_number_of_images(small: nn.Module, small_onnx: Path) -> None:
    answer = onnx_answer(small_onnx)
    for count in (1, 2, 7):
        images = torch.randn(count, 1, 8, 8)
        assert compare(answer(images), small(images)).required("small").images == count
    graph = onnx.load(small_onnx).graph
    assert ([each.name for each in graph.input], [each.name for each in graph.output]) == (["image"], ["logits"])
    assert list(small_onnx.parent.iterdir()) == [small_onnx]


def test_torch_export_takes_any_number_of_images(small: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "small.pt2"
    write(Part("", small, None), "torch_export", (1, 8, 8), 4, path)
    loaded = torch.export.load(path).module()
    for count in (1, 2, 7):
        images = torch.randn(count, 1, 8, 8)
        torch.testing.assert_close(loaded(images), small(images))


def test_safetensors_is_the_state_dict_that_the_recipe_takes(tmp_path: Path) -> None:
    recipe = Network("cifar_resnet8", {"widths": [2, 2, 4, 8]})
    network, images = recipe.build(4, 1, seed=3).eval(), torch.randn(2, 1, 8, 8)
    answer = write(Part("", network, recipe), "safetensors", (1, 8, 8), 4, tmp_path / "a.safetensors")
    assert torch.equal(answer(images), network(images))
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert set(file.keys()) == set(network.state_dict())


def test_an_ensemble_is_no_state_dict(small: nn.Module, tmp_path: Path) -> None:
    part = Part("ensemble_2", small, None, "it is the answer of 2 networks together")
    said = "part ensemble_2 cannot be a state dict: it is the answer of 2 networks together; take --format onnx or"
    with pytest.raises(ValueError, match=said):
        write(part, "safetensors", (1, 8, 8), 4, tmp_path / "a.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "names"),
    [
        ("vit", [None]),
        ("deit", [None, "class_head"]),
        ("dml", ["ensemble"]),
        ("one", ["one", "one_2"]),
        ("exits", ["net", "net_2", "net_ensemble"]),
        ("ban", ["generation_0", "ensemble_2"]),
    ],
)
@pytest.mark.parametrize("format", ["onnx", "torch_export"])
def test_every_part_is_written_and_answers_as_it_does(
    taken: Callable[[str], Any], run: str, names: list[str | None], format: str, tmp_path: Path
) -> None:
    seen, kind = taken(run), cast(Format, format)
    for name in names:
        part, images = seen.parts[name], seen.answers.batch.image
        answer = write(part, kind, (1, 8, 8), 10, tmp_path / f"{name}{SUFFIXES[kind]}")
        with torch.no_grad():
            compare(answer(images), part.network(images)).required(str(name))
            compare(answer(images[:1]), part.network(images[:1])).required(str(name))
