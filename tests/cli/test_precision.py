from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import Namespace

from kd_lightning.cli.commands import run
from kd_lightning.cli.precision import choose_precision, gains_from_bfloat16


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    found = {"avx512_bf16": True, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return found


def test_a_cpu_that_multiplies_in_bfloat16_gains(able: dict[str, bool]) -> None:
    assert gains_from_bfloat16("auto")
    assert gains_from_bfloat16("cpu")
    assert not gains_from_bfloat16("mps")
    able["avx512_bf16"] = False
    assert not gains_from_bfloat16("cpu")
    able["amx_bf16"] = True
    assert gains_from_bfloat16("cpu")


@pytest.mark.parametrize(("capability", "gains"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_gains_from_ampere_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], gains: bool, able: dict[str, bool]
) -> None:
    able["avx512_bf16"] = False
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert gains_from_bfloat16("gpu") is gains
    assert gains_from_bfloat16("auto") is gains
    assert not gains_from_bfloat16("cpu")


def test_what_is_stated_stays(able: dict[str, bool]) -> None:
    stated = Namespace(precision="32-true", accelerator="auto")
    choose_precision(stated)
    assert stated.precision == "32-true"
    open_ = Namespace(precision=None, accelerator="auto")
    choose_precision(open_)
    assert open_.precision == "bf16-mixed"
    able["avx512_bf16"] = False
    slow = Namespace(precision=None, accelerator="auto")
    choose_precision(slow)
    assert slow.precision is None


def test_the_run_records_what_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, able: dict[str, bool]
) -> None:
    config = Path(__file__).parents[2] / "configs/digits/supervised/student.yaml"
    text = config.read_text().replace("  precision: 32-true\n", "")
    assert text != config.read_text()
    (tmp_path / "c.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    line = ["fit", "--config", "c.yaml", "--trainer.max_epochs=1", "--experiment=e", "--run=r"]
    assert run([*line, "--trainer.limit_train_batches=1", "--trainer.enable_progress_bar=false"]) == 0
    assert yaml.safe_load(Path("runs/e/r/config.yaml").read_text())["trainer"]["precision"] == "bf16-mixed"
