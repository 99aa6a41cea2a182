import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from kd_lightning.export import check_folder, filling, push


def test_files_move_together(tmp_path: Path) -> None:
    with filling(tmp_path / "a/b") as folder:
        (folder / "model.onnx").write_text("new")
        assert not (tmp_path / "a/b/model.onnx").exists()
    assert [each.name for each in (tmp_path / "a/b").iterdir()] == ["model.onnx"]


def test_after_an_error_nothing_is_new(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("old")
    with pytest.raises(ValueError, match="no"), filling(tmp_path) as folder:
        (folder / "model.onnx").write_text("new")
        raise ValueError("no")
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "old"


def test_somebody_elses_readme_is_not_overwritten(tmp_path: Path) -> None:
    check_folder(tmp_path / "new", "m.onnx")
    (tmp_path / "README.md").write_text("my project")
    with pytest.raises(ValueError, match=r"README\.md is no model card of an export, and would be overwritten"):
        check_folder(tmp_path, "m.onnx")
    (tmp_path / "preprocessing.json").write_text("{}")
    check_folder(tmp_path, "m.onnx")


def test_a_folder_is_of_one_network(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("old")
    check_folder(tmp_path, "m.onnx")
    with pytest.raises(ValueError, match=r"holds m\.onnx, and one card is of one network: give the export a folder"):
        check_folder(tmp_path, "m.safetensors")


class LocalApi:
    """Stands in for `huggingface_hub.HfApi`: repositories are folders."""

    root: Path

    def __init__(self, **options: str) -> None:
        assert options == {"library_name": "kd-lightning"}

    def create_repo(self, repo_id: str, exist_ok: bool) -> Any:
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str) -> str:
        for file in huggingface_hub.utils.filter_repo_objects(
            [each.name for each in folder_path.iterdir()], allow_patterns=allow_patterns
        ):
            shutil.copy(folder_path / file, self.root / repo_id)
        return f"{repo_id}: {commit_message}"


def test_the_exports_files_alone_go_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", LocalApi)
    monkeypatch.setattr(LocalApi, "root", tmp_path / "hub", raising=False)
    (tmp_path / "out").mkdir()
    for name in ("model[a].onnx", "modela.onnx", "README.md", ".env", "data.csv"):
        (tmp_path / "out" / name).write_text(name)
    assert push("me/net", tmp_path / "out", ["model[a].onnx", "README.md"]) == "me/net: Upload model[a].onnx"
    assert sorted(each.name for each in (tmp_path / "hub/me/net").iterdir()) == ["README.md", "model[a].onnx"]
