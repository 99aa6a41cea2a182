import json
import os
from pathlib import Path

import pytest

from kd_lightning.whole_file import whole_file, write_json, write_text


def test_a_file_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert [found.name for found in path.parent.iterdir()] == ["a.txt"]

    def fail(handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "three")
    assert path.read_text() == "two"
    assert [found.name for found in path.parent.iterdir()] == ["a.txt"]


def test_after_an_error_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with whole_file(path) as file:
        file.write(b"one")
    with pytest.raises(KeyError), whole_file(path) as file:
        file.write(b"half")
        assert path.read_bytes() == b"one"  # a reader meanwhile
        raise KeyError
    assert path.read_bytes() == b"one"
    assert [found.name for found in tmp_path.iterdir()] == ["a.bin"]


def test_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": [0.5, None]})
    assert (tmp_path / "a.json").read_text() == '{\n  "b": 1,\n  "a": [\n    0.5,\n    null\n  ]\n}\n'
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1, "a": [0.5, None]}
