import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import yaml
from torch import nn

from kd_lightning.cli import export as command_line
from kd_lightning.cli.commands import run
from kd_lightning.cli.exporter import is_whole
from kd_lightning.export import formats, onnx_answer
from kd_lightning.models import FrozenTeacher, save_weights
from kd_lightning.run_folder import RunFolder
from kd_lightning.trust import ALLOWED

CONFIGS = Path(__file__).parents[2] / "configs/digits"
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")
SHORT = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=4", "--trainer.limit_val_batches=1")
TEACHER = ("--model.teacher.init_args.network.weights=runs/e/teacher", "--model.teacher.init_args.check=false")
OF_TEACHER = "{name: cifar_resnet8, weights: runs/e/teacher}"
SMALL = "{name: cifar_resnet8, kwargs: {widths: [2, 2, 4, 8]}}"
SIMKD = (
    "--model.student.name=kd_lightning.models.SimKDStudent",
    f"--model.student.kwargs={{student: {SMALL}, teacher: {OF_TEACHER}}}",
)
BAN = (
    "--trainer.max_epochs=2",
    "--model.generations=2",
    "--model.epochs_per_generation=1",
    "--model.first=null",
    "--model.teacher=FrozenTeacher",
    f"--model.teacher.init_args.network={OF_TEACHER}",
    "--model.teacher.init_args.check=false",
)
BRANCHING = """
from torch import Tensor, nn

class Net(nn.Sequential):
    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits if x.isfinite().all() else 2 * logits
"""
VIT = {"img_size": 8, "patch_size": 2, "embed_dim": 32, "depth": 3, "num_heads": 2}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with the runs ``runs/e/*``; ``kd`` and ``ban`` were tested."""
    work = tmp_path_factory.mktemp("work")
    (work / "nets_that_branch.py").write_text(BRANCHING)
    before = set(ALLOWED)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(work)
        patched.setattr(sys, "path", [*sys.path])
        for name, config, options in (
            ("teacher", "supervised/teacher.yaml", ()),
            ("vit", "supervised/vit.yaml", ()),
            ("kd", "offline/kd.yaml", TEACHER),
            ("dml", "online/dml.yaml", ()),
            ("simkd", "offline/kd.yaml", (*TEACHER, *SIMKD)),
            ("ban", "born_again/ban.yaml", BAN),
            (
                "own",
                "supervised/student.yaml",
                ("--allow=nets_that_branch", "--model.student={name: nets_that_branch.Net, kwargs: {}}"),
            ),
        ):
            named = ("--experiment", "e", "--run", name)
            assert run(["fit", "--config", str(CONFIGS / config), *named, *QUIET, *SHORT, *options]) == 0
        for name in ("kd", "ban"):
            assert run(["test", f"runs/e/{name}", *QUIET]) == 0
        yield work
    ALLOWED.clear()
    ALLOWED.update(before)


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
        "- checkpoint: last; of epoch 1, step 4",
        "- epochs: 1",
        "        temperature: 4.0",
        "DigitsDataModule",
    ):
        assert said in card
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "apache-2.0"
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == results["test/top1"]
    everything = "".join(each.read_text() for each in tmp_path.iterdir() if each.suffix in {".md", ".json"})
    assert "runs/" not in everything
    assert str(Path.cwd()) not in everything


def exported(name: str, folder: Path, *options: str) -> str:
    """The card of a run's export as safetensors."""
    line = ["export", f"runs/e/{name}", "--format=safetensors", "--output", str(folder / "m.safetensors")]
    assert run([*line, *options]) == 0
    return (folder / "README.md").read_text()


def test_figures_of_another_checkpoint_are_not_told(tmp_path: Path) -> None:
    card = exported("kd", tmp_path, "--ckpt=best")
    assert "This checkpoint has not been tested; `kd-lightning test RUN --ckpt best` tests it." in card
    assert "- checkpoint: best, by val/top1; of epoch 1, step 4" in card


def test_figures_of_other_weights_of_the_same_name_are_not_told(tmp_path: Path) -> None:
    copied = RunFolder(Path(shutil.copytree("runs/e/kd", "runs/e/later")))
    checkpoint = torch.load(copied.last, weights_only=True)
    checkpoint["state_dict"]["student.fc.bias"] += 1.0
    checkpoint["epoch"] += 1
    torch.save(checkpoint, copied.last)
    card = exported("later", tmp_path)
    assert "This checkpoint has not been tested; `kd-lightning test RUN` tests it." in card
    assert "- checkpoint: last; of epoch 2, step 4" in card


def test_figures_of_another_test_are_not_told(tmp_path: Path) -> None:
    shutil.copytree("runs/e/kd", "runs/e/otherwise")
    options = ("--trainer.limit_test_batches=1", "--model.channels_last=false")
    assert run(["test", "runs/e/otherwise", *QUIET, *options]) == 0
    results = json.loads(RunFolder(Path("runs/e/otherwise")).results.read_text())
    assert results["stated_otherwise"] == ["model.init_args.channels_last"]
    said = "has not been tested on the whole test set, but on 128 of 450 images; `kd-lightning"
    assert said in exported("otherwise", tmp_path)


def test_the_teacher_of_the_first_generation_has_not_the_figure_of_a_later_one(tmp_path: Path) -> None:
    results = json.loads(RunFolder(Path("runs/e/ban")).results.read_text())
    card = exported("ban", tmp_path)
    assert f"| test/teacher_top1 | {results['test/teacher_top1']:.4f} |" in card
    assert "- teacher of generation 0: `cifar_resnet8`, not measured here\n" in card


def unasked(*given: Any) -> NoReturn:
    raise AssertionError("a teacher was asked")


def test_the_teacher_may_be_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrozenTeacher, "__call__", unasked)
    shutil.move("runs/e/teacher", "runs/e/gone")
    try:
        for name in ("kd", "simkd", "ban"):
            exported(name, tmp_path / name)
    finally:
        shutil.move("runs/e/gone", "runs/e/teacher")
    found = re.search(r"```python\n(.*?)\n```", (tmp_path / "simkd/README.md").read_text(), re.DOTALL)
    assert found is not None
    monkeypatch.chdir(tmp_path / "simkd")
    names: dict[str, Any] = {}
    exec(found[1], names)
    assert names["network"](torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_no_recipe_is_trained(tmp_path: Path) -> None:
    copied = RunFolder(Path(shutil.copytree("runs/e/kd", "runs/e/of_recipe")))
    copied.config.write_text(copied.config.read_text().replace("runs/e/teacher", "{recipe: nowhere/teacher.yaml}"))
    assert "recipe: teacher.yaml" in exported("of_recipe", tmp_path)
    assert not Path("runs/recipes").exists()


def test_a_network_whose_computation_branches_is_weights_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["export", "runs/e/own", "--allow=nets_that_branch", "--format=torch_export"]
    assert run([*line, "--output", str(tmp_path / "m.pt2")]) == 2
    said = capsys.readouterr().err
    assert "the network Net cannot be written as torch_export: Could not guard on data-dependent expression" in said
    assert "take --format safetensors" in said
    assert "Net(num_classes=10)" in exported("own", tmp_path, "--allow=nets_that_branch")


def test_so_many_batches_are_compared_as_the_command_line_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported("kd", tmp_path, "--trainer.limit_test_batches=1")
    assert "128 of 128 decisions the same" in capsys.readouterr().out
    assert [is_whole(limit) for limit in (1, 1.0, 0.5, None)] == [False, True, False, True]


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


def test_a_hub_that_is_out_of_reach_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Unreached(Exception):
        """What an HTTP client raises, which is of no common class."""

    class Api:
        def __init__(self, **options: str) -> None:
            pass

        def create_repo(self, repo_id: str, exist_ok: bool) -> Any:
            raise Unreached("[Errno -3] Temporary failure in name resolution")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    line = ["export", "runs/e/kd", "--format=safetensors", "--output", str(tmp_path / "m.safetensors")]
    assert run([*line, "--push-to-hub", "me/net"]) == 1
    said = f"{tmp_path} is written, but me/net on the Hugging Face hub was not: [Errno -3] Temporary failure"
    assert said in capsys.readouterr().err
    assert "m.safetensors" in written(tmp_path)


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
