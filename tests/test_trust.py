from pathlib import Path

import pytest
import torch

from kd_lightning.trust import BUILT_IN, allow, imported


@pytest.fixture
def outsider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module beside the user's script that leaves a file when it is imported."""
    name = f"outsider_{tmp_path.name}"
    ran = tmp_path / "ran"
    (tmp_path / f"{name}.py").write_text(f"open({str(ran)!r}, 'w').close()\nvalue = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_what_is_allowed_from_the_start() -> None:
    assert imported("torch.nn.Linear") is torch.nn.Linear
    assert {"torch", "timm", "torchvision", "kd_lightning", "lightning"} <= BUILT_IN
    assert not {"os", "subprocess", "builtins", "shutil", "sys", "importlib"} & BUILT_IN


@pytest.mark.parametrize("path", ["os.system", "subprocess.Popen", "builtins.eval", "shutil.rmtree"])
def test_what_is_not_allowed_is_named(path: str) -> None:
    with pytest.raises(ValueError, match=f"'{path}' may not be imported: .*--allow {path.split('.')[0]}"):
        imported(path)


def test_a_refused_module_is_not_even_imported(outsider: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="may not be imported"):
        imported(f"{outsider}.value")
    assert not (tmp_path / "ran").exists()


def test_an_allowed_module_is_imported(outsider: str, tmp_path: Path) -> None:
    allow([outsider])
    assert imported(f"{outsider}.value") == 3
    assert (tmp_path / "ran").exists()


def test_a_name_that_begins_like_an_allowed_one_is_not_allowed() -> None:
    allow(["os.path"])
    with pytest.raises(ValueError, match="may not be imported"):
        imported("torchevil.run")
    with pytest.raises(ValueError, match="may not be imported"):
        imported("os.system")


@pytest.mark.parametrize("path", ["torch.os.system", "torch.nn.modules.sys.exit"])
def test_an_allowed_module_is_no_way_to_another(path: str) -> None:
    with pytest.raises(ValueError, match=f"'{path}' cannot be imported: No module named"):
        imported(path)


@pytest.mark.parametrize("path", ["Linear", ".Linear", ""])
def test_a_path_without_a_module_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="may not be imported"):
        imported(path)


def test_a_missing_module_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"'torch\.nothing\.Here' cannot be imported: No module named 'torch\.nothing'"
    ):
        imported("torch.nothing.Here")


def test_a_missing_name_gives_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"torch\.nn has no 'Linaer', did you mean Linear"):
        imported("torch.nn.Linaer")


def test_a_missing_name_that_is_like_nothing() -> None:
    with pytest.raises(ValueError, match=r"torch\.nn has no 'qqqqqqqq'$"):
        imported("torch.nn.qqqqqqqq")
