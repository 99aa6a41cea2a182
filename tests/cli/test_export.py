import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import yaml
from torch import nn

from kd_lightning.cli import export as command_line
from kd_lightning.cli.commands import run
from kd_lightning.export import formats, onnx_answer
from kd_lightning.models import save_weights
from kd_lightning.run_folder import RunFolder

CONFIGS = Path(__file__).parents[2] / "configs/digits"
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")
SHORT = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=4", "--trainer.limit_val_batches=1")
TEACHER = ("--model.teacher.init_args.network.weights=runs/e/teacher", "--model.teacher.init_args.check=false")
VIT = {"img_size": 8, "patch_size": 2, "embed_dim": 32, "depth": 3, "num_heads": 2}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with ``runs/e/{teacher,vit,kd,dml}``; ``kd`` was tested."""
    work = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(work)
        for name, config, options in (
            ("teacher", "supervised/teacher.yaml", ()),
            ("vit", "supervised/vit.yaml", ()),
            ("kd", "offline/kd.yaml", TEACHER),
            ("dml", "online/dml.yaml", ()),
        ):
            named = ("--experiment", "e", "--run", name)
            assert run(["fit", "--config", str(CONFIGS / config), *named, *QUIET, *SHORT, *options]) == 0
        assert run(["test", "runs/e/kd", *QUIET]) == 0
    return work


@pytest.fixture(autouse=True)
def there(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)


def written(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


PLAIN = """
import sys
sys.modules["kd_lightning"] = None  # importing it is an error
import numpy, timm, torch
from safetensors.torch import load_file
images = torch.from_numpy(numpy.load("images.npy"))
network = timm.create_model("deit_tiny_patch16_224", num_classes=10, in_chans=1, **{arguments}).eval()
network.load_state_dict(load_file("{folder}/vit.safetensors"))
loaded = timm.create_model("local-dir:{folder}", pretrained=True).eval()
with torch.no_grad():
    numpy.save("logits.npy", torch.stack([network(images), loaded(images)]).numpy())
"""


def test_a_timm_student_is_loaded_without_this_package(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "vit"
    assert run(["export", "runs/e/vit", "--format", "safetensors", "--output", str(folder / "vit.safetensors")]) == 0
    said = capsys.readouterr().out
    assert "450 of 450 decisions the same, logits differ by 0 at most" in said
    assert "is unknown: --license states it" in said
    assert written(folder) == ["README.md", "classes.json", "config.json", "preprocessing.json", "vit.safetensors"]
    images = torch.randn(5, 1, 8, 8)
    np.save(tmp_path / "images.npy", images.numpy())
    code = PLAIN.format(arguments=VIT, folder=folder)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    expected = timm.create_model("deit_tiny_patch16_224", num_classes=10, in_chans=1, **VIT).eval()
    state = torch.load("runs/e/vit/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    expected.load_state_dict({key.removeprefix("student."): value for key, value in state.items()})
    for logits in torch.from_numpy(np.load(tmp_path / "logits.npy")):
        torch.testing.assert_close(logits, expected(images))


def test_what_stands_beside_the_file(tmp_path: Path) -> None:
    line = ["export", "runs/e/kd", "--format", "safetensors", "--output", str(tmp_path / "model.safetensors")]
    assert run([*line, "--license=apache-2.0"]) == 0
    assert json.loads((tmp_path / "classes.json").read_text()) == [str(digit) for digit in range(10)]
    assert json.loads((tmp_path / "preprocessing.json").read_text()) == {
        "channels": 1,
        "input_size": [1, 8, 8],
        "mean": [0.3053],
        "std": [0.3758],
        "crop_pct": 1.0,
    }
    card, results = (tmp_path / "README.md").read_text(), json.loads(RunFolder(Path("runs/e/kd")).results.read_text())
    for said in (
        "loss: `0.1 · CrossEntropy + 0.9 · SoftTarget(T=4)`",
        f"- teacher: `cifar_resnet8`, test top-1 {results['test/teacher_top1']:.4f}",
        f"| test/top1 | {results['test/top1']:.4f} |",
        "pip install kd-lightning",
        "- epochs: 1",
    ):
        assert said in card
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "apache-2.0"
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == results["test/top1"]
    everything = "".join(each.read_text() for each in tmp_path.iterdir() if each.suffix in {".md", ".json"})
    assert "runs/" not in everything
    assert str(Path.cwd()) not in everything


def test_figures_of_another_checkpoint_are_not_told(tmp_path: Path) -> None:
    line = ["export", "runs/e/kd", "--format=safetensors", "--ckpt=best"]
    assert run([*line, "--output", str(tmp_path / "m.safetensors")]) == 0
    assert "This checkpoint has not been tested" in (tmp_path / "README.md").read_text()


def test_8_bit_weights_are_measured_on_the_test_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "kd.onnx"
    assert run(["export", "runs/e/teacher", "--format=onnx", "--output", str(path), "--int8=static"]) == 0
    said = capsys.readouterr().out
    assert "wrote" in said
    line = next(line for line in said.splitlines() if line.startswith("int8 (static, calibrated on 512 training"))
    assert line in (tmp_path / "README.md").read_text()
    assert run(["test", "runs/e/teacher", *QUIET]) == 0
    tested = json.loads(RunFolder(Path("runs/e/teacher")).results.read_text())["test/top1"]
    assert f"test top-1 {tested:.4f} before" in line
    assert written(tmp_path) == ["README.md", "classes.json", "kd.onnx", "preprocessing.json"]
    assert onnx_answer(path)(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_a_file_that_answers_otherwise_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoilt(network: nn.Module, path: Path) -> None:
        save_weights({key: value * 1.1 for key, value in network.state_dict().items()}, path)

    monkeypatch.setattr(formats, "save_weights", spoilt)
    line = ["export", "runs/e/vit", "--format=safetensors", "--output", str(tmp_path / "m.safetensors")]
    assert run(line) == 2
    assert "m.safetensors does not answer as the network does" in capsys.readouterr().err
    assert written(tmp_path) == []


def test_an_export_goes_to_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    brought: dict[str, Any] = {}

    class Api:
        def __init__(self, **options: str) -> None:
            pass

        def create_repo(self, repo_id: str, exist_ok: bool) -> Any:
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, **given: Any) -> str:
            brought.update(given)
            return "https://hub/me/net"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    line = ["export", "runs/e/kd", "--format=safetensors", "--output", str(tmp_path / "m.safetensors")]
    assert run([*line, "--push-to-hub", "me/net"]) == 0
    assert (brought["repo_id"], brought["folder_path"]) == ("me/net", tmp_path)
    assert sorted(brought["allow_patterns"]) == written(tmp_path)
    assert "pushed to https://hub/me/net" in capsys.readouterr().out


SAFE = ("--format=safetensors", "--output=out/m.safetensors")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("runs/e/kd", *SAFE, "--int8=dynamic"), "--int8 is for --format onnx, got safetensors"),
        (("runs/e/kd", *SAFE, "--parts=a"), "export has no option --parts=a"),
        (("runs/e/kd", *SAFE, "--models.lr=1"), "export has no option --models.lr=1"),
        (("runs/e/kd", *SAFE, "--push_to_hub=a/b/c"), "a/b/c"),
        (("runs/e/none", *SAFE), "there is no run folder runs/e/none"),
        (("runs/e/kd", "--format=onnx", "--output=out/m.pt2"), "must end in .onnx, got m.pt2"),
        (("runs/e/kd", "--format=onnx", "--output=o/m.onnx", "--calibration_images=3"), "is for --int8 static"),
        (
            ("runs/e/kd", "--format=onnx", "--output=o/m.onnx", "--int8=static", "--calibration_images=0"),
            "--calibration_images must be >= 1, got 0",
        ),
        (("runs/e/kd", *SAFE, "--part=head"), "the run has no part 'head'; it has none"),
        (("runs/e/dml", *SAFE), "say which by --part; it has best, a, b, ensemble"),
        (("runs/e/dml", *SAFE, "--part=ensemble"), "take --format onnx or torch_export"),
        (("runs/e/dml", *SAFE, "--part=best"), None),
    ],
)
def test_a_command_line_and_what_is_wrong_with_it(
    line: tuple[str, ...], message: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", *line]) == (0 if message is None else 2)
    assert (message or "") in capsys.readouterr().err
    assert message is None or not list(Path.cwd().glob("o*/*"))


def test_options_of_the_test_are_passed_on() -> None:
    wanted, repo_id, options = command_line.asked(["runs/e/kd", *SAFE, "--data.init_args.eval_batch_size", "32"])
    assert options == ["--data.init_args.eval_batch_size", "32"]
    assert (wanted.ckpt, wanted.part, wanted.int8, repo_id) == ("last", None, None, None)


def test_a_project_is_not_spoilt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text("mine")
    line = ["export", "runs/e/kd", "--format=safetensors", "--output", str(tmp_path / "m.safetensors")]
    assert run(line) == 2
    assert "is no model card of an export" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "mine"


ALONE = """
import sys
sys.modules["kd_lightning"] = sys.modules["timm"] = None
import torch
assert torch.export.load("{path}").module()(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
"""


@pytest.mark.slow
def test_a_torch_export_is_loaded_by_torch_alone(tmp_path: Path) -> None:
    path = tmp_path / "kd.pt2"
    assert run(["export", "runs/e/kd", "--format=torch_export", "--output", str(path)]) == 0
    subprocess.run([sys.executable, "-c", ALONE.format(path=path)], check=True, timeout=120)
