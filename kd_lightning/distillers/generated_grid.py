"""A picture of generated images in the run's folder."""

import os
from pathlib import Path

from torch import Tensor
from torchvision.utils import make_grid, save_image

COLUMNS = 8


def write_grid(pixels: Tensor, path: Path) -> None:
    """Write images ``[N, C, H, W]`` in [0, 1], 8 in a row, as one PNG file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    save_image(make_grid(pixels.float().cpu(), nrow=COLUMNS), part, format="png")
    part.replace(path)
