"""What is installed from the wheel works outside the repository, with its own configurations."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PARTS = ("pyproject.toml", "README.md", "LICENSE", "kd_lightning", "configs")
Carried = Callable[..., str]
ASKED = """
import json, onnxruntime, torch
from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.models import Network

data = DigitsDataModule(global_batch_size=450)
data.setup("test")
(batch,) = data.test_dataloader()
network = Network("cifar_resnet8", {"widths": [2, 2, 4, 8]}, weights="runs/e/r").build(10, 1).eval()
session = onnxruntime.InferenceSession("onnx/student.onnx")
(logits,) = session.run(["logits"], {"image": batch.image.contiguous().numpy()})
same = torch.from_numpy(logits).argmax(dim=1) == network(batch.image).argmax(dim=1)
print(json.dumps({"images": len(batch), "same": int(same.sum())}))
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the repository, in which no earlier build is left."""
    copy = tmp_path_factory.mktemp("copy")
    for part in PARTS:
        if (REPOSITORY / part).is_dir():
            shutil.copytree(REPOSITORY / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPOSITORY / part, copy / part)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(copy / "out"), str(copy)], check=True)
    (built,) = (copy / "out").glob("kd_lightning-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel is installed."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([*pip, str(wheel)], check=True)
    return folder


@pytest.fixture
def carried(installed: Path, tmp_path: Path) -> Carried:
    """Runs Python with the installed package, in a folder that has nothing to do with the repository."""

    def out_of(*line: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(installed)}
        command = [sys.executable, *line]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return out_of


def test_every_file_is_in_the_wheel(wheel: Path) -> None:
    kept = set(zipfile.ZipFile(wheel).namelist())
    code = {path.relative_to(REPOSITORY) for path in (REPOSITORY / "kd_lightning").rglob("*") if path.is_file()}
    assert {path.as_posix() for path in code if "__pycache__" not in path.parts} <= kept
    beside = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "configs").rglob("*") if path.is_file()}
    assert {name for name in kept if name.startswith("kd_lightning/configs/")} == {f"kd_lightning/{n}" for n in beside}


def test_the_installed_package_is_the_one_that_is_used(carried: Carried, installed: Path) -> None:
    told = carried("-c", "import kd_lightning.packaged as p; print(p.__file__, p.CONFIGS, sep='\\n')").split()
    assert told == [str(installed / "kd_lightning" / name) for name in ("packaged.py", "configs")]


def test_its_configurations_are_listed(carried: Carried) -> None:
    names = [line.split()[0] for line in carried("-m", "kd_lightning", "list", "configs").splitlines()]
    configs = REPOSITORY / "configs"
    assert names == sorted(path.relative_to(configs).as_posix() for path in configs.rglob("*.yaml"))


def test_one_of_them_is_trained_with_its_recipe(carried: Carried, tmp_path: Path) -> None:
    line = ["--config", "digits/offline/kd.yaml", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
    carried("-m", "kd_lightning", "fit", *line, "--experiment", "e", "--run", "r")
    assert json.loads((tmp_path / "runs/e/r/run.json").read_text())
    (teacher,) = (tmp_path / "runs/recipes").glob("teacher-*/")
    assert (teacher / "run.json").is_file()
    assert str(REPOSITORY) not in (tmp_path / "runs/e/r/config.yaml").read_text()
    on_cpu = "--trainer.accelerator=cpu"
    carried("-m", "kd_lightning", "report", "runs/e/r", "--output", "report", on_cpu)
    assert len(json.loads((tmp_path / "report/report.json").read_text())["methods"]) == 1
    line = ["export", "runs/e/r", "--format", "onnx", "--output", "onnx/student.onnx"]
    assert "450 of 450 decisions the same" in carried("-m", "kd_lightning", *line)
    assert json.loads(carried("-c", ASKED)) == {"images": 450, "same": 450}
