"""Images are decoded once, the copy is never stale or torn, and every fault names its file."""

import errno
import logging
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kd_lightning.datamodules import decoded
from kd_lightning.datamodules.decoded import COPY, LOCK, read_decoded
from kd_lightning.datamodules.in_memory import ImageArrays

SIZE = (4, 5)
COUNTS = {"train/cat": 3, "train/ant": 2, "test/cat": 1, "test/ant": 2}


def pixels(seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def write(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight images; the seeds count up in the order in which they are written."""
    seed = 0
    for part, count in COUNTS.items():
        for number in range(count):
            write(tmp_path / part / f"{number}.png", seed)
            seed += 1
    return tmp_path


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were decoded."""
    seen: list[str] = []
    decode = decoded.decode

    def note(path: str, size: tuple[int, int]) -> Any:
        seen.append(path)
        return decode(path, size)

    monkeypatch.setattr(decoded, "decode", note)
    return seen


def same(first: ImageArrays, second: ImageArrays) -> bool:
    return all(np.array_equal(np.asarray(one), np.asarray(other)) for one, other in zip(first, second, strict=True))


def test_classes_and_files_are_sorted_by_name(folder: Path) -> None:
    arrays = read_decoded(folder, SIZE)
    assert arrays.classes == ("ant", "cat")
    assert arrays.train_labels.tolist() == [0, 0, 1, 1, 1]
    assert arrays.test_labels.tolist() == [0, 0, 1]
    assert arrays.train_labels.dtype == np.int64
    assert np.array_equal(arrays.train_images, np.stack([pixels(seed) for seed in (3, 4, 0, 1, 2)]))
    assert np.array_equal(arrays.test_images, np.stack([pixels(seed) for seed in (6, 7, 5)]))


def test_second_start_decodes_nothing(folder: Path, decodes: list[str]) -> None:
    first = read_decoded(folder, SIZE)
    assert len(decodes) == len(set(decodes)) == 8
    assert same(first, read_decoded(folder, SIZE))
    assert len(decodes) == 8
    assert {path.name for path in folder.iterdir()} == {"train", "test", COPY, LOCK}


def rewrite(folder: Path) -> None:
    write(folder / "train/cat/0.png", seed=50)
    os.utime(folder / "train/cat/0.png", ns=(0, 0))  # whatever the clock's resolution


def rename(folder: Path) -> None:
    (folder / "train/cat/0.png").rename(folder / "train/cat/9.png")


@pytest.mark.parametrize(
    "change",
    [
        rewrite,
        rename,
        lambda folder: write(folder / "test/cat/7.png", seed=51),
        lambda folder: (folder / "test/ant/0.png").unlink(),
    ],
    ids=["rewritten", "renamed", "added", "removed"],
)
def test_changed_files_are_decoded_again(folder: Path, change: Callable[[Path], None]) -> None:
    read_decoded(folder, SIZE)
    change(folder)
    found = read_decoded(folder, SIZE)
    (folder / COPY).unlink()
    assert same(found, read_decoded(folder, SIZE))


def flip_byte(copy: Path) -> None:
    content = bytearray(copy.read_bytes())
    content[-30] ^= 4
    copy.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip_byte,
        lambda copy: copy.write_bytes(copy.read_bytes()[:-10]),
        lambda copy: copy.write_bytes(b""),
        lambda copy: copy.write_bytes(b"something else altogether"),
    ],
    ids=["bit", "truncated", "empty", "foreign"],
)
def test_damaged_copy_is_made_anew(folder: Path, damage: Callable[[Path], None], decodes: list[str]) -> None:
    first = read_decoded(folder, SIZE)
    damage(folder / COPY)
    assert same(first, read_decoded(folder, SIZE))
    assert len(decodes) == 16
    assert same(first, read_decoded(folder, SIZE))
    assert len(decodes) == 16


def test_what_a_killed_run_left_does_not_matter(folder: Path) -> None:
    left = folder / f".{COPY}.0f.part"
    left.write_bytes(b"half")
    read_decoded(folder, SIZE)
    assert not left.exists()
    assert (folder / COPY).exists()


def test_concurrent_starts_decode_once(folder: Path, decodes: list[str]) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: read_decoded(folder, SIZE), range(4)))
    assert len(decodes) == 8
    assert all(same(found[0], other) for other in found)


@pytest.mark.parametrize("what", ["FileLock", "write_copy"])
@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_folder_that_cannot_be_written_to(
    folder: Path,
    what: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    decodes: list[str],
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setattr(decoded, what, refuse)
        found = read_decoded(folder, SIZE)
    assert not (folder / COPY).exists()
    assert caplog.messages == [f"{folder} cannot be written to: its images are decoded at every start."]
    assert len(decodes) == 8
    assert same(found, read_decoded(folder, SIZE))


def test_full_disk_is_an_error_and_leaves_the_old_copy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    read_decoded(folder, SIZE)
    before = (folder / COPY).read_bytes()
    rename(folder)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        read_decoded(folder, SIZE)
    assert (folder / COPY).read_bytes() == before
    assert not (folder / (COPY + ".part")).exists()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])  # the last pixels; what follows them is 20 bytes


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("not an image"),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["truncated", "empty", "foreign", "folder"],
)
def test_file_that_does_not_decode_is_named(folder: Path, damage: Callable[[Path], object]) -> None:
    path = folder / "train/cat/1.png"
    damage(path)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} does not decode as an image: "):
        read_decoded(folder, SIZE)
    assert not (folder / COPY).exists()


def test_file_of_another_size_is_named(folder: Path) -> None:
    path = folder / "test/ant/0.png"
    Image.new("RGB", (7, 6)).save(path)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} must be an image of 4x5 pixels, got 6x7$"):
        read_decoded(folder, SIZE)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_other_colour_modes_become_three_channels(folder: Path, mode: str) -> None:
    Image.new(mode, SIZE[::-1], 1).save(folder / "test/cat/0.png")
    wanted = {"L": 1, "P": None, "RGBA": None, "1": 255}[mode]
    image = read_decoded(folder, SIZE).test_images[2]
    assert image.shape == (*SIZE, 3)
    assert wanted is None or (image == wanted).all()


@pytest.mark.parametrize("part", ["train", "test"])
def test_missing_part(folder: Path, part: str) -> None:
    (folder / part).rename(folder / "elsewhere")
    with pytest.raises(FileNotFoundError, match=rf"must hold the folders train and test, {part} is missing$"):
        read_decoded(folder, SIZE)


def test_empty_class(folder: Path) -> None:
    (folder / "train/bee").mkdir()
    with pytest.raises(ValueError, match=r"train/bee holds no images$"):
        read_decoded(folder, SIZE)


def test_class_in_one_part_only(folder: Path) -> None:
    write(folder / "test/bee/0.png", seed=0)
    with pytest.raises(ValueError, match=r"must have the same classes, only in one of them: \['bee'\]$"):
        read_decoded(folder, SIZE)


def test_files_beside_the_class_folders_are_not_looked_at(folder: Path) -> None:
    before = read_decoded(folder, SIZE)
    (folder / "train/README").write_text("notes")
    (folder / "notes").mkdir()
    assert same(before, read_decoded(folder, SIZE))
