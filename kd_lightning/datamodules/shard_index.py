"""The index of a shard: where in a tar archive each image is, and its label; kept beside it."""

import json
import logging
import os
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kd_lightning.datamodules.encoded import SUFFIXES
from kd_lightning.whole_file import whole_file

BLOCK = 512  # bytes; a tar archive consists of such, and ends with blocks of zeros
VERSION = 1
LABEL_KEYS = ("label", "cls")  # of a .json member
SUFFIX = ".index.npz"

log = logging.getLogger(__name__)
Parts = dict[str, tarfile.TarInfo]


class ShardIndex(NamedTuple):
    """What is where in a shard; all int64.

    Attributes:
        stamp: Version of this format, size of the archive in bytes, time of its last change in ns, ``[3]``.
        offsets: First byte of each image, ``[M]``.
        sizes: Of each image, in bytes, ``[M]``.
        labels: Class indices, ``[M]``.
    """

    stamp: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]


def stamp(path: Path) -> NDArray[np.int64]:
    """What an index must be of, to be of the archive as it is now."""
    status = path.stat()
    return np.array([VERSION, status.st_size, status.st_mtime_ns], dtype=np.int64)


def members(file: BinaryIO, path: Path) -> Iterator[tarfile.TarInfo]:
    """The regular files in an archive, as they come.

    Raises:
        ValueError: if it is no tar archive, or ends before its end.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else it keeps them all
                if member.isreg():
                    yield member
            end = os.pread(file.fileno(), BLOCK, tar.offset)
    except tarfile.ReadError as error:
        raise ValueError(f"{path} is not a whole, uncompressed tar archive: {error}") from error
    if end != bytes(BLOCK):
        raise ValueError(f"{path} is truncated or damaged: no member and no end of the archive at byte {tar.offset}")


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member, as in webdataset: the file name is split at its first dot."""
    path = PurePosixPath(name)
    stem, _, extension = path.name.partition(".")
    return str(path.with_name(stem)) if stem else "", extension.lower()


def samples(file: BinaryIO, path: Path) -> Iterator[tuple[str, Parts]]:
    """Key of each sample, and its members by extension; those of a sample follow one another.

    Hidden files, and webdataset's ``__...__``, are left out.

    Raises:
        ValueError: if a key comes again, or as in `members`.
    """
    seen: set[str] = set()
    last, parts = "", Parts()
    for member in members(file, path):
        key, extension = split_name(member.name)
        if not key or PurePosixPath(key).name.startswith("__"):
            continue
        if key != last:
            if parts:
                yield last, parts
            if key in seen:
                raise ValueError(f"{path} has the key {key} twice, with others in between")
            seen.add(key)
            last, parts = key, Parts()
        if extension in parts:
            raise ValueError(f"{path} has the member {key}.{extension} twice")
        parts[extension] = member
    if parts:
        yield last, parts


def label_of(parts: Parts, file: BinaryIO, name: str) -> int:
    """The class index that a sample states: in its ``.cls``, else under ``label`` or ``cls`` in its ``.json``.

    Raises:
        ValueError: if there is none, or it is no whole number >= 0.
    """

    def content(extension: str) -> bytes:
        return os.pread(file.fileno(), parts[extension].size, parts[extension].offset_data)

    stated: object = None
    if "cls" in parts:
        stated = content("cls").decode(errors="replace").strip()
    elif "json" in parts:
        with suppress(ValueError):
            record = json.loads(content("json"))
            stated = next((record[key] for key in LABEL_KEYS if key in record), None)
    if stated is None:
        raise ValueError(f"{name} has no label: expected a member .cls, or a .json with {' or '.join(LABEL_KEYS)}")
    if isinstance(stated, bool) or not str(stated).isdecimal():
        raise ValueError(f"the label of {name} must be a class index >= 0, got {stated!r}")
    return int(str(stated))


def index_shard(path: Path) -> ShardIndex:
    """Read through an archive once, from member to member.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is no whole tar archive, or a sample has no image, several, or no label; it is named.
    """
    before = stamp(path)
    rows: list[tuple[int, int, int]] = []
    with path.open("rb") as file:
        for key, parts in samples(file, path):
            images = [extension for extension in parts if f".{extension}" in SUFFIXES]
            if len(images) != 1:
                raise ValueError(f"{path}:{key} must have one image, got the members {', '.join(sorted(parts))}")
            image = parts[images[0]]
            rows.append((image.offset_data, image.size, label_of(parts, file, f"{path}:{key}")))
    if not rows:
        raise ValueError(f"{path} has no samples: expected members such as 000123.jpg and 000123.cls")
    offsets, sizes, labels = np.array(rows, dtype=np.int64).T.copy()
    return ShardIndex(before, offsets, sizes, labels)


def index_path(path: Path) -> Path:
    """Where the index of an archive is kept."""
    return path.with_name(path.name + SUFFIX)


def stored(path: Path) -> ShardIndex | None:
    """The index beside an archive; None where it is missing, damaged, or of another archive."""
    try:
        with np.load(index_path(path), allow_pickle=False) as arrays:
            index = ShardIndex(*(arrays[name] for name in ShardIndex._fields))
    except (FileNotFoundError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None
    return index if np.array_equal(index.stamp, stamp(path)) else None


def store(path: Path, index: ShardIndex) -> None:
    """Keep the index of an archive beside it, as a whole or not at all; not where nothing can be written."""
    target = index_path(path)
    try:
        with whole_file(target) as file:
            np.savez(file, **index._asdict())
    except OSError as error:
        log.info("The index of %s is not kept and will be made again in the next run: %s", path, error)


def indexed(path: Path) -> ShardIndex:
    """The index of an archive: the one beside it if it is up to date, else a new one; errors as in `index_shard`."""
    index = stored(path)
    if index is None:
        log.info("Reading through %s once, for an index of its images.", path)
        index = index_shard(path)
        store(path, index)
    return index
