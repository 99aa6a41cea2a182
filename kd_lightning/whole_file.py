"""Files that a reader finds old or new, never half written: made beside their place, synced, renamed."""

import glob
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes its place when the context is left without an error.

    After an error or a crash the old one is untouched; a crash may leave a part beside it (`remove_parts`). Folders are
    made.

    Raises:
        OSError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def remove_parts(path: Path) -> None:
    """Remove what crashes have left beside a file, where nobody else is writing it."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")
