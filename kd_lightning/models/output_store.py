"""A file of stored outputs: rows of bytes in one memory map, each with a checksum and a mark that it is filled."""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from kd_lightning.whole_file import remove_parts, whole_file

MAGIC = "kd_lightning stored outputs 1"
HEADER = 1 << 16  # bytes
PAGE = 4096
SHOWN = 60  # characters of a fact in an error

Rows = NDArray[np.int64]
Bytes = NDArray[np.uint8]


class Layout(NamedTuple):
    """Where the parts of a file lie.

    Attributes:
        rows: How many there are.
        row_bytes: Bytes of one.
    """

    rows: int
    row_bytes: int

    @property
    def sums(self) -> int:
        """Where the checksums begin, in bytes."""
        return HEADER + -(-self.rows // PAGE) * PAGE

    @property
    def data(self) -> int:
        """Where the rows begin, in bytes."""
        return self.sums + -(-4 * self.rows // PAGE) * PAGE

    @property
    def size(self) -> int:
        """The whole file, in bytes."""
        return self.data + self.rows * self.row_bytes


def written_as(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("kB", "MB"):
        if (size := size / 1000) < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} GB"


def differences(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """What a file and a run say differently, one line each."""

    def shown(facts: Mapping[str, str], key: str) -> str:
        text = facts.get(key, "nothing")
        return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"

    lines = []
    for key in sorted({*there, *here}):
        if there.get(key) != here.get(key):
            before, after = shown(there, key), shown(here, key)
            if before == after:  # they differ further on
                before, after = there[key], here[key]
            lines.append(f"{key}: the file has {before}, this run {after}")
    return lines


def row_sums(data: Bytes) -> NDArray[np.uint32]:
    """The CRC-32 of each row, of uint8 ``[N, B]``."""
    return np.fromiter((zlib.crc32(row) for row in np.ascontiguousarray(data)), np.uint32, len(data))


class OutputStore:
    """Rows that several processes fill and read at once.

    A row is written first, then its checksum, then its mark, so a process that dies leaves no wrong row behind; a row
    whose checksum is wrong counts as missing. Who writes a row that another process has just written replaces it; of
    two that write it at once, at worst neither's is whole. Processes of one machine see each other's rows at once; a
    network file system may show them later, which costs time and nothing else.

    Args:
        path: Of the file; made, with its folders, where it is not there.
        layout: Of the file.
        facts: What the rows are of: another file is refused.

    Raises:
        OSError: if there is no room for it.
        ValueError: if the file is none of these, is damaged, or is of something else; every difference is named.
    """

    def __init__(self, path: Path, layout: Layout, facts: Mapping[str, str]) -> None:
        self.path, self.layout, self.facts = path, layout, dict(facts)
        path.parent.mkdir(parents=True, exist_ok=True)  # for the lock
        self._lock = FileLock(f"{path}.lock")
        with self._lock:
            if not path.exists():
                self._make()
            self._check()
        self.filled = np.memmap(path, np.uint8, "r+", HEADER, (layout.rows,))
        self._sums = np.memmap(path, np.uint32, "r+", layout.sums, (layout.rows,))
        self._data = np.memmap(path, np.uint8, "r+", layout.data, (layout.rows, layout.row_bytes))
        self.damaged = 0

    def _make(self) -> None:
        remove_parts(self.path)
        with whole_file(self.path) as file:
            file.write(header({"facts": self.facts, "layout": self.layout._asdict(), "notes": {}}))
            try:
                os.posix_fallocate(file.fileno(), 0, self.layout.size)  # later, a full disk would be a bus error
            except OSError as error:
                raise OSError(
                    f"there is no room for the {written_as(self.layout.size)} of stored outputs in "
                    f"{self.path.parent}: {error.strerror}; give another path, or fewer views"
                ) from error

    def _check(self) -> None:
        content = self._header()
        if different := differences(content["facts"], self.facts):
            raise ValueError(
                "\n  ".join([f"{self.path} holds the outputs of something else; give another path:", *different])
            )
        if content["layout"] != self.layout._asdict() or self.path.stat().st_size != self.layout.size:
            raise ValueError(
                f"{self.path} has {self.path.stat().st_size} bytes and the layout {content['layout']}, "
                f"expected {self.layout.size} and {self.layout._asdict()}: it is truncated or damaged; delete it"
            )

    def _header(self) -> dict[str, Any]:
        with self.path.open("rb") as file:
            return read_header(file.read(HEADER), self.path)

    def notes(self) -> dict[str, Any]:
        """What was written beside the facts."""
        with self._lock:
            return dict(self._header()["notes"])

    def note(self, **notes: Any) -> None:
        """Write something beside the facts, in place of what had its name."""
        with self._lock:
            content = self._header()
            content["notes"] |= notes
            with self.path.open("r+b") as file:
                file.write(header(content))
                file.flush()
                os.fsync(file.fileno())

    def read(self, rows: Rows) -> tuple[Bytes, NDArray[np.bool_]]:
        """Rows, uint8 ``[N, B]``, and which of them are there, bool ``[N]``; what is not there has any content.

        Args:
            rows: int64 ``[N]``.
        """
        data, there = np.asarray(self._data[rows]), self.filled[rows] == 1
        whole = row_sums(data) == self._sums[rows]
        self.damaged += int((there & ~whole).sum())
        return data, there & whole

    def write(self, rows: Rows, data: Bytes) -> None:
        """Fill rows.

        Args:
            rows: int64 ``[N]``.
            data: uint8 ``[N, B]``.
        """
        self.filled[rows] = 0  # of a damaged one, so that no one reads it half written
        self._data[rows] = data
        self._sums[rows] = row_sums(data)
        self.filled[rows] = 1

    def flush(self) -> None:
        """Bring all that was written to the disk."""
        for part in (self._data, self._sums, self.filled):
            part.flush()


def header(content: Mapping[str, Any]) -> bytes:
    """The first bytes of a file: its kind, the checksum of the text, the text.

    Raises:
        ValueError: if it is too long.
    """
    text = json.dumps(content, sort_keys=True)
    line = f"{MAGIC}\n{zlib.crc32(text.encode()):08x}\n{text}\n".encode()
    if len(line) > HEADER:
        raise ValueError(f"the facts of stored outputs take {len(line)} bytes, at most {HEADER} are kept")
    return line.ljust(HEADER, b"\0")


def read_header(start: bytes, path: Path) -> dict[str, Any]:
    """What a file says of itself.

    Args:
        start: The first bytes of it.
        path: Where it is, for errors.

    Raises:
        ValueError: if it is no such file, or damaged.
    """
    kind, _, rest = start.partition(b"\n")
    if kind.decode(errors="replace") != MAGIC:
        raise ValueError(f"{path} holds no stored outputs: it does not begin with {MAGIC!r}")
    checksum, _, text = rest.partition(b"\n")
    text = text.partition(b"\n")[0]
    if f"{zlib.crc32(text):08x}".encode() != checksum:
        raise ValueError(f"the header of {path} is damaged: delete the file, and its outputs are computed anew")
    content: dict[str, Any] = json.loads(text)
    return content
