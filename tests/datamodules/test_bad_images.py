"""Bad files are found once, and the verdict holds as long as the files do."""

import json
import logging
import os
from pathlib import Path

import pytest

from kd_lightning.datamodules import bad_images as module
from kd_lightning.datamodules.bad_images import bad_images, cache_path
from kd_lightning.datamodules.image_files import ImageFiles, list_images


@pytest.fixture
def files(image_root: Path) -> ImageFiles:
    """Nine files, of which rows 3 and 8 are bad."""
    (image_root / "train/b/1.jpg").write_bytes(b"foreign")
    whole = (image_root / "train/c/2.jpg").read_bytes()
    (image_root / "train/c/2.jpg").write_bytes(whole[: len(whole) // 2])
    return list_images(image_root / "train")


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} was decoded again")

    monkeypatch.setattr(module, "decode", refuse)


def test_bad_files_are_found_with_their_rows_and_one_warning_each(
    files: ImageFiles, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        bad = bad_images(files)
    assert list(bad) == [3, 8]
    assert str(files.path(3)) in bad[3]
    assert "runcated" in bad[8]  # Pillow has two sentences for it
    assert [record.getMessage() for record in caplog.records] == [f"Left out: {fault}" for fault in bad.values()]


def test_more_files_than_a_thread_takes_at_once(files: ImageFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 2)
    assert list(module.scan(files, 2)) == [3, 8]


def test_verdict_is_remembered(files: ImageFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bad_images(files)
    forbid_decoding(monkeypatch)
    assert bad_images(files) == first


def test_changed_file_is_judged_again(files: ImageFiles) -> None:
    bad_images(files)
    files.path(3).write_bytes(files.path(2).read_bytes())
    assert list(bad_images(files)) == [8]


def test_file_of_the_same_size_is_judged_again_by_its_time(files: ImageFiles) -> None:
    bad_images(files)
    path = files.path(0)
    time, size = path.stat().st_mtime_ns, path.stat().st_size
    path.write_bytes(bytes(size))
    os.utime(path, ns=(time + 1000, time + 1000))
    assert list(bad_images(files)) == [0, 3, 8]


def test_new_file_is_judged(files: ImageFiles) -> None:
    bad_images(files)
    (files.folder / "a/9.png").write_bytes(b"")
    assert list(bad_images(list_images(files.folder))) == [2, 4, 9]


@pytest.mark.parametrize("content", ["", "[]", '{"fingerprint": "x"}'])
def test_foreign_verdict_is_not_used(files: ImageFiles, content: str) -> None:
    cache_path(files).write_text(content)
    assert list(bad_images(files)) == [3, 8]
    assert list(json.loads(cache_path(files).read_text())["bad"]) == ["3", "8"]


def test_read_only_data_gives_the_same_verdict(files: ImageFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert list(bad_images(files)) == [3, 8]
    assert not cache_path(files).exists()


def test_file_that_cannot_be_read_stops_the_scan(files: ImageFiles) -> None:
    files.path(5).unlink()
    with pytest.raises(FileNotFoundError, match=str(files.path(5))):
        module.scan(files, 2)
