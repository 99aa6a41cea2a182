"""A teacher that knows more classes than the data: an error without a stated map, a plain teacher with one."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from kd_lightning.cli.commands import run
from kd_lightning.models import Network, load_weights, save_weights
from kd_lightning.run_folder import RunFolder

CONFIGS = Path(__file__).parents[2] / "configs/digits"
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")
PLACES = [11, 0, 5, 3, 7, 2, 9, 10, 1, 6]  # of the ten digits among the teacher's twelve classes
MAPPED = (f"--model.teacher.init_args.classes={PLACES}", "--model.teacher.init_args.num_classes=12")
Fit = Callable[..., RunFolder]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Weights of a teacher of the digits, and of the same with two classes more, in another order."""
    folder = tmp_path_factory.mktemp("teachers")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        path = CONFIGS / "supervised/teacher.yaml"
        assert run(["fit", "--config", str(path), "--run=t", *QUIET, "--trainer.max_epochs=3"]) == 0
    narrow, wide = (Network("cifar_resnet8").build(classes, 1, seed=0) for classes in (10, 12))
    load_weights(narrow, folder / "runs/teacher/t/checkpoints/last.ckpt")
    state = narrow.state_dict()
    for name in ("fc.weight", "fc.bias"):
        state[name] = wide.state_dict()[name].index_copy(0, torch.tensor(PLACES), state[name])
    wide.load_state_dict(state)
    found = {"narrow": folder / "narrow.safetensors", "wide": folder / "wide.safetensors"}
    save_weights(narrow, found["narrow"])
    save_weights(wide, found["wide"])
    return {name: str(path) for name, path in found.items()}


@pytest.fixture
def fit(teachers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Fits a configuration for two epochs, by one of the teachers."""
    monkeypatch.chdir(tmp_path)

    def fitted(config: str, teacher: str, *options: str, code: int = 0) -> RunFolder:
        line = ["fit", "--config", str(CONFIGS / f"{config}.yaml"), "--experiment=e", f"--run={teacher}", *QUIET]
        weights = f"--model.teacher.init_args.network.weights={teachers[teacher]}"
        assert run([*line, weights, "--trainer.max_epochs=2", *options]) == code
        return RunFolder(Path("runs/e") / teacher)

    return fitted


@pytest.mark.parametrize("config", ["offline/kd", "deit/hard", "data_free/adversarial"])
def test_more_classes_without_a_map_are_an_error_before_the_first_step(
    config: str, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fit(config, "wide", code=2)
    said = capsys.readouterr().err
    assert "has 12 classes, the network 10" in said
    assert "for a teacher, say in its classes which of its own they are" in said
    assert not folder.metrics.exists()
    assert not folder.last.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (MAPPED[:1], "with classes, give num_classes, the number of its own"),
        ((f"--model.teacher.init_args.classes={PLACES[:9]}", MAPPED[1]), "classes must name 10 classes"),
        ((f"--model.teacher.init_args.classes={[*PLACES[:9], 12]}", MAPPED[1]), "got 12"),
    ],
)
def test_a_map_that_does_not_fit_is_an_error(
    options: Sequence[str], message: str, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    fit("offline/kd", "wide", *options, code=2)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("config", ["offline/kd", "deit/hard"])
def test_with_a_map_the_student_is_that_of_the_plain_teacher(config: str, fit: Fit) -> None:
    options = ["--data.init_args.global_batch_size=128"]
    plain, mapped = fit(config, "narrow", *options), fit(config, "wide", *options, *MAPPED)
    mine, its = (torch.load(folder.last, weights_only=True)["state_dict"] for folder in (plain, mapped))
    assert mine.keys() == its.keys()
    for name, value in mine.items():
        torch.testing.assert_close(its[name], value, rtol=1e-4, atol=1e-5)
    with mapped.metrics.open(newline="") as file:
        values = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert values[-1] < values[0]
