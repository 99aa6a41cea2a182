"""Small folders of images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeFolder = Callable[[dict[str, int]], Path]


def write_noise(path: Path, seed: int, height: int, width: int) -> None:
    """A JPEG of smooth noise: coarse, so that compression leaves the images different."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Writes ``{"train/a": 3, ...}`` images of several sizes below a root of their own."""

    def make(counts: dict[str, int]) -> Path:
        seed = 0
        for folder, count in counts.items():
            for number in range(count):
                seed += 1
                write_noise(tmp_path / folder / f"{number}.jpg", seed, 30 + seed % 7, 40 - seed % 5)
        return tmp_path

    return make


@pytest.fixture
def image_root(make_folder: MakeFolder) -> Path:
    """Nine training images and five test images in three classes."""
    return make_folder({"train/a": 2, "train/b": 4, "train/c": 3, "val/a": 2, "val/b": 1, "val/c": 2})
