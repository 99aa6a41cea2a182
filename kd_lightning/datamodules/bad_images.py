"""Which image files cannot be decoded: found out once, remembered beside the data."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import PIL

from kd_lightning.datamodules.image_files import BadImageError, ImageFiles, decode

CHUNK = 64  # files per task of a thread
OnBadImage = Literal["error", "skip"]
log = logging.getLogger(__name__)


def fingerprint(files: ImageFiles, times: bool = True) -> str:
    """Hash of the names, sizes and (if asked) times of the files, and of the version of the decoder."""
    digest = hashlib.sha256(f"Pillow {PIL.__version__}".encode())
    for row in range(len(files)):
        status = files.path(row).stat()
        time = status.st_mtime_ns if times else 0
        digest.update(b"%b\0%d %d\n" % (files.names[row], status.st_size, time))
    return digest.hexdigest()


def scan(files: ImageFiles, threads: int) -> dict[int, str]:
    """Row and fault of each file that cannot be decoded, ascending; every file is decoded in full.

    Raises:
        OSError: if a file cannot be read: that is the disk's fault, not the image's.
    """

    def faults(start: int) -> list[tuple[int, str]]:
        found = []
        for row in range(start, min(start + CHUNK, len(files))):
            try:
                decode(files.path(row))
            except BadImageError as error:
                found.append((row, str(error)))
        return found

    with ThreadPoolExecutor(threads) as pool:
        return dict(fault for part in pool.map(faults, range(0, len(files), CHUNK)) for fault in part)


def cache_path(files: ImageFiles) -> Path:
    """Where the verdict on a folder is kept: beside it, hidden."""
    return files.folder.parent / f".{files.folder.name}.bad_images.json"


def remembered(path: Path, key: str) -> dict[int, str] | None:
    """The verdict in a file, if it is on files with this fingerprint."""
    try:
        stored = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if not isinstance(stored, Mapping) or stored.get("fingerprint") != key:
        return None
    return {int(row): fault for row, fault in stored["bad"].items()}


def remember(path: Path, key: str, bad: dict[int, str]) -> None:
    """Keep a verdict, as a whole or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False) as part:
        json.dump({"fingerprint": key, "bad": bad}, part, indent=1)
    os.replace(part.name, path)


def bad_images(files: ImageFiles) -> dict[int, str]:
    """Row and fault of each file that cannot be decoded; one warning for each.

    The verdict is kept in a small file beside the folder, if that can be written, and holds as long as names, sizes and
    times of all files do. Else all are decoded again, in threads.
    """
    path, key = cache_path(files), fingerprint(files)
    bad = remembered(path, key)
    if bad is None:
        log.info("Decoding %d images of %s once, to leave out the bad ones.", len(files), files.folder)
        bad = scan(files, os.cpu_count() or 1)
        if os.access(path.parent, os.W_OK):
            remember(path, key, bad)
        else:
            log.info("%s cannot be written: the images will be decoded again in the next run.", path)
    for fault in bad.values():
        log.warning("Left out: %s", fault)
    return bad
