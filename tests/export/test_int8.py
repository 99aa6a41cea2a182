import logging
import shutil
from pathlib import Path
from typing import cast

import onnx
import pytest
import torch
from torch import nn

from kd_lightning.export import Int8, Mode, compare, onnx_answer, to_int8

SCALED = {"dynamic": {"ConvInteger", "MatMulInteger"}, "static": {"QuantizeLinear", "DequantizeLinear"}}


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_weights_become_8_bit_and_the_answer_stays_near(
    mode: str, small: nn.Module, small_onnx: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(small_onnx, tmp_path))
    level = logging.root.level
    to_int8(path, cast(Mode, mode), [torch.randn(200, 1, 8, 8), torch.randn(56, 1, 8, 8)])
    assert logging.root.level == level
    graph = onnx.load(path).graph
    assert SCALED[mode] <= {node.op_type for node in graph.node}
    weights = [each for each in graph.initializer if len(each.dims) > 1]
    assert {each.data_type for each in weights} == {onnx.TensorProto.UINT8}
    images = torch.randn(32, 1, 8, 8)
    agreement = compare(onnx_answer(path)(images), small(images))
    assert 0 < agreement.difference < 0.05 * agreement.scale  # 0.09 where products overflow
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_said_of_it() -> None:
    said = str(Int8("static", 0.9, 0.89, 256))
    assert said == "int8 (static, calibrated on 256 training images): test top-1 0.9000 before, 0.8900 after"
    assert str(Int8("dynamic", 0.9, 0.89, 256)) == "int8 (dynamic): test top-1 0.9000 before, 0.8900 after"
