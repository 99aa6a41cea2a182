"""Checkpoint files: whole or not there, checked before they are believed, and never run."""

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.callbacks import SafeCheckpointIO


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A checkpoint of one tensor."""
    path = tmp_path / "checkpoints" / "last.ckpt"
    SafeCheckpointIO().save_checkpoint({"weights": torch.arange(1000.0), "epoch": 3}, path)
    return path


class Payload:
    """An object whose unpickling makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_what_is_saved_is_loaded(file: Path) -> None:
    loaded = SafeCheckpointIO().load_checkpoint(file)
    assert torch.equal(loaded["weights"], torch.arange(1000.0))
    assert loaded["epoch"] == 3
    assert [path.name for path in file.parent.iterdir()] == ["last.ckpt"]


def test_a_full_disk_leaves_the_old_file_and_no_part(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(content: Any, target: Any) -> None:
        target.write(b"half of a checkpoint")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        with pytest.raises(OSError, match=r"last\.ckpt cannot be written: .*No space left.*previous one is untouched"):
            SafeCheckpointIO().save_checkpoint({"epoch": 4}, file)
    assert [path.name for path in file.parent.iterdir()] == ["last.ckpt"]
    assert SafeCheckpointIO().load_checkpoint(file)["epoch"] == 3


def test_the_rename_comes_after_the_sync(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("sync"), sync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda self, target: (done.append("replace"), replace(self, target))[1])
    SafeCheckpointIO().save_checkpoint({"epoch": 4}, file)
    assert done == ["sync", "replace"]


def test_a_flipped_bit_in_a_tensor_is_refused(file: Path) -> None:
    content = bytearray(file.read_bytes())
    at = content.find(torch.arange(1000.0).numpy().tobytes())
    assert at > 0
    content[at + 2001] ^= 1
    file.write_bytes(content)
    loaded = torch.load(file, weights_only=True)  # torch itself does not notice
    assert not torch.equal(loaded["weights"], torch.arange(1000.0))
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged: the checksum of .* does not hold"):
        SafeCheckpointIO().load_checkpoint(file)


def test_a_truncated_file_is_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"last\.ckpt is not a whole checkpoint file"):
        SafeCheckpointIO().load_checkpoint(file)


def test_an_empty_file_is_refused(file: Path) -> None:
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"last\.ckpt is not a whole checkpoint file"):
        SafeCheckpointIO().load_checkpoint(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*nowhere\.ckpt"):
        SafeCheckpointIO().load_checkpoint(tmp_path / "nowhere.ckpt")


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "evil.ckpt", tmp_path / "ran"
    torch.save({"payload": Payload(mark)}, path)
    with pytest.raises(ValueError, match=r"evil\.ckpt cannot be loaded without running code"):
        SafeCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # so the payload would have worked


def test_a_bare_pickle_is_not_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "evil.ckpt", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(ValueError, match="not a whole checkpoint file"):
        SafeCheckpointIO().load_checkpoint(path)
    assert not mark.exists()


def test_removing(file: Path) -> None:
    for _ in range(2):  # a second time nothing is there, which is no fault
        SafeCheckpointIO().remove_checkpoint(file)
        assert not file.exists()
