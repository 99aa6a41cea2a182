"""How an exported file is used, as code for its model card."""

import torch

from kd_lightning.export.formats import Format
from kd_lightning.export.part import Part
from kd_lightning.export.preprocessing import Preprocessing, is_timms

PACKAGE = "kd-lightning"


def is_ours(part: Part) -> bool:
    """Whether the network's class is of this package."""
    return type(part.network).__module__.partition(".")[0] == "kd_lightning"


def library(format: Format, part: Part) -> str:
    """What reads the file."""
    if format == "safetensors":
        return "timm" if is_timms(part) and not is_ours(part) else PACKAGE if is_ours(part) else "pytorch"
    return "onnx" if format == "onnx" else "pytorch"


def _code(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _loaded(file: str, part: Part, num_classes: int, in_chans: int) -> str:
    if part.recipe is None:
        return f"`{file}` holds the state dict of `{type(part.network).__module__}.{type(part.network).__name__}`."
    name = part.recipe.name
    given = ", ".join(f"{key}={value!r}" for key, value in part.recipe.arguments(num_classes, in_chans).items())
    start, made = ["import timm"], [f'network = timm.create_model("{name}", {given})']
    if not is_timms(part):
        module, _, made_by = name.rpartition(".")
        start, made = [f"from {module} import {made_by}"], [f"network = {made_by}({given})"]
        if is_ours(part):
            start.append("from kd_lightning.models import filled_later")
            made = ["with filled_later():", f"    {made[0]}"]
    elif is_ours(part):
        start.append("import kd_lightning.models  # registers the network with timm")
    code = _code(
        *start,
        "from safetensors.torch import load_file",
        "",
        *made,
        f'network.load_state_dict(load_file("{file}"))',
        "network.eval()",
    )
    needed = f"The network's class is kd-lightning's (`pip install {PACKAGE}`).\n\n" if is_ours(part) else ""
    folder = (
        '\n\nOr, with the folder of this file: `timm.create_model("local-dir:FOLDER", pretrained=True)`.'
        if is_timms(part)
        else ""
    )
    return needed + code + folder


def usage(file: str, format: Format, part: Part, num_classes: int, preprocessing: Preprocessing) -> str:
    """How the file is loaded and asked; images are float32 ``[N, C, H, W]``."""
    if format == "safetensors":
        return _loaded(file, part, num_classes, preprocessing.image_shape[0])
    if format == "onnx":
        return _code(
            "import onnxruntime",
            "",
            f'session = onnxruntime.InferenceSession("{file}")',
            'logits = session.run(["logits"], {"image": images})[0]  # images: float32 [N, C, H, W], any N',
        )
    return f"PyTorch {torch.__version__.partition('+')[0]} or newer, no other package:\n\n" + _code(
        "import torch",
        "",
        f'network = torch.export.load("{file}").module()',
        "logits = network(images)  # images: float32 [N, C, H, W], any N",
    )
