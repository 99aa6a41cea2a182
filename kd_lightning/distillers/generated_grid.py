"""A picture of generated images in the run's folder."""

from pathlib import Path

from torch import Tensor
from torchvision.utils import make_grid, save_image

from kd_lightning.whole_file import whole_file

COLUMNS = 8


def write_grid(pixels: Tensor, path: Path) -> None:
    """Write images ``[N, C, H, W]`` in [0, 1], 8 in a row, as one PNG file, whole or not at all."""
    with whole_file(path) as file:
        save_image(make_grid(pixels.float().cpu(), nrow=COLUMNS), file, format="png")
