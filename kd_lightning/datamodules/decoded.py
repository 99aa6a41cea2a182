"""Folders of small images decoded once into arrays, which are kept beside them for the next start."""

import errno
import hashlib
import logging
import os
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from kd_lightning.datamodules.in_memory import ImageArrays
from kd_lightning.whole_file import remove_parts, whole_file

COPY = "decoded.safetensors"
LOCK = "decoded.lock"
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
PARTS = ("train", "test")
CHUNK = 256  # files per task of a thread

logger = logging.getLogger(__name__)


class Listing(NamedTuple):
    """What lies in a folder of images.

    Attributes:
        files: Paths of the images of each part, in the order of their rows.
        labels: Class indices of each part, int64 ``[M]``.
        classes: Names of the classes, sorted.
        fingerprint: Changes when a file is added, removed, renamed or written.
    """

    files: dict[str, list[str]]
    labels: dict[str, NDArray[np.int64]]
    classes: tuple[str, ...]
    fingerprint: str


def list_images(folder: Path, parts: Sequence[str] = PARTS) -> Listing:
    """The images of some parts under ``<folder>/{train,test}/<class>/``, classes and files sorted by name.

    Files beside the class folders, and other things beside ``train`` and ``test``, are not looked at.

    Raises:
        FileNotFoundError: if ``train`` or ``test`` is missing.
        ValueError: if a class has no images, or the two parts have different classes.
    """
    files: dict[str, list[str]] = {part: [] for part in parts}
    labels: dict[str, NDArray[np.int64]] = {}
    classes: dict[str, list[str]] = {}
    digest = hashlib.sha256()
    for part in parts:
        if not (folder / part).is_dir():
            raise FileNotFoundError(f"{folder} must hold the folders {' and '.join(parts)}, {part} is missing")
        classes[part] = sorted(entry.name for entry in os.scandir(folder / part) if entry.is_dir())
        counts = []
        for name in classes[part]:
            with os.scandir(folder / part / name) as entries:
                inside = sorted((entry.name, entry.path, entry.stat()) for entry in entries)
            if not inside:
                raise ValueError(f"{folder / part / name} holds no images")
            for file, path, stat in inside:
                digest.update(f"{part}/{name}/{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
                files[part].append(path)
            counts.append(len(inside))
        labels[part] = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    if classes[parts[0]] != classes[parts[-1]]:
        odd = sorted(set(classes["train"]) ^ set(classes["test"]))
        raise ValueError(f"train and test in {folder} must have the same classes, only in one of them: {odd}")
    return Listing(files, labels, tuple(classes[parts[-1]]), digest.hexdigest())


def decode(path: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """An image file as uint8 ``[H, W, 3]``.

    Args:
        path: Of the file, in any format that Pillow reads.
        size: (height, width) that it must have.

    Raises:
        ValueError: if it does not decode, or has another size.
    """
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} does not decode as an image: {error}") from error
    if pixels.shape[:2] != size:
        raise ValueError(
            f"{path} must be an image of {size[0]}x{size[1]} pixels, got {pixels.shape[0]}x{pixels.shape[1]}"
        )
    return pixels


def decode_all(paths: Sequence[str], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Image files as uint8 ``[M, H, W, 3]``, decoded by several threads; errors as in `decode`."""
    images = np.empty((len(paths), *size, 3), dtype=np.uint8)

    def decode_part(start: int, stop: int) -> None:
        for row in range(start, stop):
            images[row] = decode(paths[row], size)

    starts = range(0, len(paths), CHUNK)
    with ThreadPoolExecutor() as pool:
        list(pool.map(decode_part, starts, [min(start + CHUNK, len(paths)) for start in starts]))
    return images


def checksum(arrays: Mapping[str, NDArray[np.uint8]]) -> str:
    """CRC-32 of the images, in hexadecimal."""
    crc = 0
    for part in PARTS:
        crc = zlib.crc32(arrays[part].data, crc)
    return f"{crc:08x}"


def read_copy(copy: Path, fingerprint: str) -> dict[str, NDArray[np.uint8]] | None:
    """The images of both parts from the stored copy; None where it is missing, damaged, or of other files."""
    try:
        with safe_open(copy, framework="numpy") as stored:
            record = stored.metadata() or {}
            if record.get("fingerprint") != fingerprint:
                return None
            images = {part: stored.get_tensor(part) for part in PARTS}
    except (FileNotFoundError, SafetensorError):
        return None
    return images if record.get("crc32") == checksum(images) else None


def write_copy(copy: Path, images: Mapping[str, NDArray[np.uint8]], fingerprint: str) -> None:
    """Store the images of both parts; a reader finds the old copy or the new one, never a piece of one."""
    with whole_file(copy) as file:
        file.write(save(dict(images), metadata={"fingerprint": fingerprint, "crc32": checksum(images)}))


def decode_and_store(listing: Listing, copy: Path, size: tuple[int, int]) -> dict[str, NDArray[np.uint8]]:
    """The images of both parts, decoded and stored under a lock, or only decoded where nothing can be written."""
    images: dict[str, NDArray[np.uint8]] | None = None
    try:
        with FileLock(copy.with_name(LOCK)):
            images = read_copy(copy, listing.fingerprint)  # another process may have stored it meanwhile
            if images is None:
                remove_parts(copy)
                images = {part: decode_all(listing.files[part], size) for part in PARTS}
                write_copy(copy, images, listing.fingerprint)
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        logger.info("%s cannot be written to: its images are decoded at every start.", copy.parent)
    return images or {part: decode_all(listing.files[part], size) for part in PARTS}


def read_decoded(folder: Path, size: tuple[int, int]) -> ImageArrays:
    """The images under ``<folder>/{train,test}/<class>/``, from the decoded copy in ``folder`` where it is up to date.

    The first of several processes decodes and stores, the others wait for its copy. In a folder that cannot be
    written to, every start decodes.

    Args:
        folder: Of the data set.
        size: (height, width) of the images.

    Raises:
        FileNotFoundError: if ``train`` or ``test`` is missing.
        ValueError: if a class is empty or in one part only, or a file is not an image of that size.
    """
    listing, copy = list_images(folder), folder / COPY
    images = read_copy(copy, listing.fingerprint)
    if images is None:
        images = decode_and_store(listing, copy, size)
    return ImageArrays(
        images["train"], listing.labels["train"], images["test"], listing.labels["test"], listing.classes
    )


def read_decoded_test_set(folder: Path, size: tuple[int, int]) -> ImageArrays:
    """The images under ``<folder>/test/<class>/``, decoded; ``<folder>/train`` is not looked at.

    Args:
        folder: Of the data set.
        size: (height, width) of the images.

    Raises:
        FileNotFoundError: if ``test`` is missing.
        ValueError: if a class is empty, or a file is not an image of that size.
    """
    listing = list_images(folder, ("test",))
    none, no_labels = np.empty((0, *size, 3), dtype=np.uint8), np.empty(0, dtype=np.int64)
    images = decode_all(listing.files["test"], size)
    return ImageArrays(none, no_labels, images, listing.labels["test"], listing.classes)
