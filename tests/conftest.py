"""What all tests share: one thread, known seeds, no network, and real data where it is to be had."""

import os
import random
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

# Set before torch is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from kd_lightning.trust import ALLOWED, allow

REPOSITORY = Path(__file__).parents[1]
BESIDE = REPOSITORY.parent / "shared" / "data"  # zipped data sets may lie beside the checkout
DATA = "KD_LIGHTNING_DATA"
TRAIN_PER_CLASS, TEST_PER_CLASS = 20, 10

settings.register_profile("kd_lightning", deadline=None, derandomize=True)
settings.load_profile("kd_lightning")


@pytest.fixture(autouse=True)
def known_seeds() -> None:
    """Start each test from the same generators, and from no seed that an earlier test left for its run."""
    torch.set_num_threads(1)
    os.environ.pop("PL_GLOBAL_SEED", None)
    os.environ.pop("PL_SEED_WORKERS", None)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def visible() -> set[str]:
    return {path.name for path in REPOSITORY.iterdir() if not path.name.startswith(".")}


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_in_the_repository() -> Iterator[None]:
    """A run that was not sent elsewhere writes into the folder that the tests were started from."""
    before = visible()
    yield
    assert visible() <= before


@pytest.fixture(autouse=True)
def trusted_as_before() -> Iterator[None]:
    """What a test allows to be imported, the next one does not."""
    before = set(ALLOWED)
    yield
    ALLOWED.clear()
    ALLOWED.update(before)


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Writes a module of a user's own, by name and source, which may be imported until the test ends."""
    written = []

    def write(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        allow([name])
        written.append(name)

    yield write
    for name in written:
        sys.modules.pop(name, None)


def user_data(name: str) -> Path:
    """The folder that holds ``name/``: the one that the environment names, or the checkout's ``data``."""
    for root in (os.environ.get(DATA), REPOSITORY / "data"):
        if root and (Path(root) / name).is_dir():
            return Path(root)
    pytest.skip(f"no {name}: set {DATA} to the folder that holds {name}/")


def data_set(name: str, folder: Path, wanted: Callable[[str], bool]) -> Path:
    """The folder that holds ``name/``: a part of it, unpacked from beside the checkout, or the user's."""
    archive = BESIDE / f"{name}.zip"
    if not archive.is_file():
        return user_data(name)
    with zipfile.ZipFile(archive) as content:
        content.extractall(folder, [member for member in content.namelist() if wanted(member)])
    return folder


def some_of_each_class(member: str) -> bool:
    """Whether a file ``cifar100/<split>/<class>/<number>.<suffix>`` is among the first of its class."""
    _, split, _, file = member.split("/")
    return int(Path(file).stem) < (TRAIN_PER_CLASS if split == "train" else TEST_PER_CLASS)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the user's data sets, all of CIFAR-100 among them."""
    return user_data("cifar100")


@pytest.fixture(scope="session")
def cifar100_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``cifar100/{train,test}/<class>/``: all of CIFAR-100, or the first images of each class."""
    return data_set("cifar100", tmp_path_factory.mktemp("cifar100"), some_of_each_class)


@pytest.fixture(scope="session")
def tiny_cifar100_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``cifar100/{train,test}/<class>/``, one image each: a real one where it is at hand, else noise."""
    root = tmp_path_factory.mktemp("tiny_cifar100")
    if (BESIDE / "cifar100.zip").is_file():
        return data_set("cifar100", root, lambda member: Path(member).stem in ("0", "00", "000", "0000", "00000"))
    for number in range(100):
        for split in ("train", "test"):
            path = root / f"cifar100/{split}/c{number:02}/0.png"
            path.parent.mkdir(parents=True)
            noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)
    return root


@pytest.fixture(scope="session")
def imagenet_sample_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``imagenet_sample/{train,val}/<wnid>/``: 100 classes, one image each."""
    return data_set("imagenet_sample", tmp_path_factory.mktemp("imagenet_sample"), lambda member: True)
