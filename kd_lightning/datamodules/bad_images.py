"""Which images cannot be decoded: found out once, remembered beside the data."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from kd_lightning.datamodules.decoding import VERSIONS, decode
from kd_lightning.datamodules.encoded import BadImageError, EncodedImages
from kd_lightning.whole_file import write_json

CHUNK = 64  # files per task of a thread
OnBadImage = Literal["error", "skip"]
log = logging.getLogger(__name__)


def fingerprint(images: EncodedImages, times: bool = True) -> str:
    """Hash of the names, sizes and (if asked) times of the images, and of the versions of what decodes them."""
    digest = hashlib.sha256(VERSIONS.encode())
    for stamp in images.stamps(times):
        digest.update(stamp)
    return digest.hexdigest()


def scan(images: EncodedImages, threads: int) -> dict[int, str]:
    """Row and fault of each image that cannot be decoded, ascending; every image is decoded in full.

    Raises:
        OSError: if an image cannot be read: that is the disk's fault, not the image's.
    """

    def faults(start: int) -> list[tuple[int, str]]:
        found = []
        for row in range(start, min(start + CHUNK, len(images))):
            try:
                decode(images.read(row))
            except BadImageError as error:
                found.append((row, str(error)))
        return found

    with ThreadPoolExecutor(threads) as pool:
        return dict(fault for part in pool.map(faults, range(0, len(images), CHUNK)) for fault in part)


def cache_path(images: EncodedImages) -> Path:
    """Where the verdict on images is kept: beside their place, hidden."""
    return images.place.parent / f".{images.place.name}.bad_images.json"


def remembered(path: Path, key: str) -> dict[int, str] | None:
    """The verdict in a file, if it is on images with this fingerprint."""
    try:
        stored = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if not isinstance(stored, Mapping) or stored.get("fingerprint") != key:
        return None
    return {int(row): fault for row, fault in stored["bad"].items()}


def remember(path: Path, key: str, bad: dict[int, str]) -> None:
    """Keep a verdict, as a whole or not at all."""
    write_json(path, {"fingerprint": key, "bad": bad})


def bad_images(images: EncodedImages) -> dict[int, str]:
    """Row and fault of each image that cannot be decoded; one warning for each.

    The verdict is kept in a small file beside the images, if that can be written, and holds as long as names, sizes and
    times of all files do. Else all are decoded again, in threads.
    """
    path, key = cache_path(images), fingerprint(images)
    bad = remembered(path, key)
    if bad is None:
        log.info("Decoding %d images of %s once, to leave out the bad ones.", len(images), images.folder)
        bad = scan(images, os.cpu_count() or 1)
        if os.access(path.parent, os.W_OK):
            remember(path, key, bad)
        else:
            log.info("%s cannot be written: the images will be decoded again in the next run.", path)
    for fault in bad.values():
        log.warning("Left out: %s", fault)
    return bad
