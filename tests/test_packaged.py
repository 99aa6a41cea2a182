"""The configurations that come with the package, and what of it is installed."""

import tomllib
from pathlib import Path

import pytest
from setuptools import find_packages

from kd_lightning import packaged
from kd_lightning.packaged import configs, found

REPOSITORY = Path(__file__).parents[1]
KD = REPOSITORY / "configs/digits/offline/kd.yaml"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_configuration_has_its_path_as_its_name() -> None:
    assert configs() == {
        path.relative_to(REPOSITORY / "configs").as_posix(): path for path in (REPOSITORY / "configs").rglob("*.yaml")
    }


@pytest.mark.parametrize(
    "name", ["digits/offline/kd.yaml", "configs/digits/offline/kd.yaml", "./configs/digits/offline/kd.yaml", str(KD)]
)
def test_a_configuration_is_found_from_any_folder(name: str) -> None:
    assert found(name) == KD
    assert found(Path(name)) == KD


def test_a_file_of_the_working_folder_comes_first() -> None:
    mine = Path("digits/offline/kd.yaml")
    mine.parent.mkdir(parents=True)
    mine.write_text("a: 1\n")
    assert found("digits/offline/kd.yaml") == mine
    assert found("configs/digits/offline/kd.yaml") == KD


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("kd_resnet56_resnet20.yaml", "cifar100/offline/kd_resnet56_resnet20.yaml"),
        ("cifar100/offline/resnet56_resnet20.yaml", "cifar100/offline/kd_resnet56_resnet20.yaml"),
        ("configs/digits/ofline/kd.yaml", "digits/offline/kd.yaml"),
        ("digits/offline/kd", "digits/offline/kd.yaml"),
        ("wide_techer.yaml", "digits/supervised/wide_teacher.yaml"),
    ],
)
def test_an_unknown_name_gives_the_nearest(name: str, near: str) -> None:
    with pytest.raises(FileNotFoundError) as refused:
        found(name)
    assert str(refused.value).startswith(f"there is no configuration {name}: did you mean {near}")


@pytest.mark.parametrize("name", ["zzz.yaml", "", "digits", "../pyproject.toml", "configs/cluster/slurm.sh"])
def test_what_is_no_configuration_is_not_found(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="there is no configuration"):
        found(name)


def test_an_installed_folder_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "CONFIGS", tmp_path / "configs")
    (tmp_path / "configs/mine").mkdir(parents=True)
    (tmp_path / "configs/mine/a.yaml").write_text("a: 1\n")
    assert found("mine/a.yaml") == tmp_path / "configs/mine/a.yaml"


def test_every_package_is_installed() -> None:
    stated = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert stated == sorted([*find_packages(str(REPOSITORY), include=["kd_lightning*"]), "kd_lightning.configs"])
