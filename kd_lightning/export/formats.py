"""The formats of an exported network: how each is written, and how its file answers when it is read again."""

import contextlib
import copy
import importlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import safetensors.torch
import torch
from torch import Tensor, nn

from kd_lightning.export.agreement import Answer
from kd_lightning.export.part import Part
from kd_lightning.models import filled_later, save_weights

Format = Literal["safetensors", "onnx", "torch_export"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES: dict[Format, str] = {"safetensors": ".safetensors", "onnx": ".onnx", "torch_export": ".pt2"}
NEEDED = ("onnx", "onnxscript", "onnxruntime")  # by ONNX
INPUT, OUTPUT = "image", "logits"


def require(format: Format, path: Path) -> None:
    """Let a format pass that can be written here under this name.

    Raises:
        ValueError: if the file's name ends otherwise, or a package is missing.
    """
    if path.suffix != (suffix := SUFFIXES[format]):
        raise ValueError(f"--output of --format {format} must end in {suffix}, got {path.name}")
    for name in NEEDED if format == "onnx" else ():
        try:
            importlib.import_module(name)
        except ImportError:
            raise ValueError(f"--format onnx needs the package {name}: pip install 'kd-lightning[onnx]'") from None


def write(part: Part, format: Format, image_shape: tuple[int, ...], num_classes: int, path: Path) -> Answer:
    """Write a part to a file, read it again, and give what the file answers to images ``[N, C, H, W]``, ``[N, K]``.

    Args:
        part: Its network takes any number of images from the file too.
        format: Of the file.
        image_shape: (C, H, W).
        num_classes: K.
        path: Of the file.

    Raises:
        ValueError: if the part is no state dict's answer, and that is asked for, or its computation cannot be written.
    """
    if format == "safetensors":
        return _safetensors(part, num_classes, image_shape[0], path)
    images = torch.zeros(2, *image_shape)  # of one image, torch.export would take the number for a constant
    batch = ({0: torch.export.Dim("batch")},)
    try:
        return (_onnx if format == "onnx" else _torch_export)(part.network, images, batch, path)
    except OSError:
        raise
    except Exception as error:  # of any kind: torch has many, most of them private, for what it cannot follow
        instead = "" if part.combined else "; take --format safetensors"
        name = type(part.network).__name__
        raise ValueError(f"the network {name} cannot be written as {format}: {_reason(error)}{instead}") from error


def _reason(error: BaseException) -> str:
    """The first line of what first went wrong."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _safetensors(part: Part, num_classes: int, in_chans: int, path: Path) -> Answer:
    if part.combined:
        raise ValueError(
            f"{f'part {part.name}' if part.name else 'the student'} cannot be a state dict: {part.combined}; "
            "take --format onnx or torch_export"
        )
    save_weights(part.network, path)
    with filled_later():
        made = part.recipe.build(num_classes, in_chans) if part.recipe is not None else copy.deepcopy(part.network)
    made.load_state_dict(safetensors.torch.load_file(path))
    return made.eval()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the exporter's account of its steps; what it raises comes through."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        yield


def _torch_export(network: nn.Module, images: Tensor, batch: Any, path: Path) -> Answer:
    with _silent():
        torch.export.save(torch.export.export(network, (images,), dynamic_shapes=batch), path)
        return torch.export.load(path).module()


def _onnx(network: nn.Module, images: Tensor, batch: Any, path: Path) -> Answer:
    with _silent():
        torch.onnx.export(
            network,
            (images,),
            path,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=batch,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return onnx_answer(path)


def onnx_answer(path: Path) -> Answer:
    """What an ONNX file answers by onnxruntime on the CPU, in as many threads as torch."""
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def answer(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

    return answer
