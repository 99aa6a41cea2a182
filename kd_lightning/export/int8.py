"""ONNX files with 8-bit weights, by onnxruntime."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

from torch import Tensor

from kd_lightning.export.formats import INPUT

Mode = Literal["dynamic", "static"]


class Int8(NamedTuple):
    """What quantisation did to a network: the mode, and top-1 in [0, 1] on the test set before and after."""

    mode: Mode
    before: float
    after: float
    calibrated_on: int

    def __str__(self) -> str:
        how = f", calibrated on {self.calibrated_on} training images" if self.mode == "static" else ""
        return f"int8 ({self.mode}{how}): test top-1 {self.before:.4f} before, {self.after:.4f} after"


class Images:
    """Gives images to the calibration, a batch at a time; onnxruntime's `CalibrationDataReader` by its methods."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self._batches: Iterator[Tensor] = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        """The next images by the name of the input; None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch.numpy()}


def to_int8(path: Path, mode: Mode, calibration: Iterable[Tensor]) -> None:
    """Replace an ONNX file by one with 8-bit weights.

    ``dynamic`` finds the range of each layer's input as it comes: convolutions, matrix products and linear layers.
    ``static`` fixes all ranges beforehand, weights by channel, which is faster on convolutional networks.

    Args:
        path: Of the file.
        mode: Which of the two.
        calibration: Batches of images ``[N, C, H, W]``; used by ``static``.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static  # type: ignore[import-untyped]
    from onnxruntime.quantization.shape_inference import quant_pre_process  # type: ignore[import-untyped]

    level = logging.root.level
    with TemporaryDirectory() as folder:
        prepared = Path(folder) / path.name
        logging.root.setLevel(logging.ERROR)  # onnxruntime warns by the root logger of each vector without channels
        try:
            quant_pre_process(path, prepared, skip_symbolic_shape=True)  # torch has found the shapes
            # On x86 without VNNI, products with signed weights are summed in 16 bits, which overflow.
            unsigned = QuantType.QUInt8
            if mode == "dynamic":
                quantize_dynamic(prepared, path, weight_type=unsigned)
            else:
                images = Images(calibration)
                quantize_static(
                    prepared, path, images, per_channel=True, activation_type=unsigned, weight_type=unsigned
                )
        finally:
            logging.root.setLevel(level)
