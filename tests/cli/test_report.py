"""The command that compares runs, on runs of the digits."""

import json
import shutil
from pathlib import Path

import pytest

from kd_lightning.cli.commands import run
from kd_lightning.cli.report import asked

CONFIGS = Path(__file__).parents[2] / "configs/digits"
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")
SHORT = ("--trainer.max_epochs=2", "--experiment=e")
NETWORK = "--model.teacher.init_args.network.weights"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a teacher, a student alone, and one that learnt features, averaged, of two seeds."""
    folder = tmp_path_factory.mktemp("report")
    features = (CONFIGS / "offline/kd.yaml").read_text()
    features = features.replace(
        "class_path: SoftTarget, init_args: {temperature: 4.0}", "class_path: AttentionTransfer"
    )
    (folder / "at.yaml").write_text(features.replace("      kd:", "      at:"))
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        teacher = ["fit", "--config", str(CONFIGS / "supervised/teacher.yaml"), "--run=teacher", *SHORT, *QUIET]
        assert run(teacher) == 0
        assert run(["fit", "--config", str(CONFIGS / "supervised/student.yaml"), "--run=alone", *SHORT, *QUIET]) == 0
        for seed in ("0", "1"):
            line = ["fit", "--config", "at.yaml", f"--run=at-seed{seed}", "--seed_everything", seed, *SHORT, *QUIET]
            averaged = "--trainer.callbacks=StudentEMA"
            assert run([*line, NETWORK, "runs/e/teacher", "--model.teacher.init_args.check=false", averaged]) == 0
    return folder


def test_the_figures_are_those_of_the_tests(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(work)
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    shutil.copytree("runs/e/alone", "runs/e/stopped", ignore=shutil.ignore_patterns("run.json"))
    assert run(["report", "runs/e"]) == 0
    shutil.rmtree("runs/e/stopped")
    assert "left out: runs/e/stopped has not finished" in capsys.readouterr().out
    written = json.loads(Path("runs/e/report/report.json").read_text())
    assert {path: path.read_bytes() for path in before} == before, "a report leaves the runs as they are"
    assert {path.name for path in Path("runs/e/report").iterdir()} == {"report.html", "report.json", "report.md"}
    assert list(written["methods"]) == ["alone", "at", "teacher"]
    assert written["methods"]["at"]["runs"] == ["runs/e/at-seed0", "runs/e/at-seed1"]
    for number, name in enumerate(("at-seed0", "at-seed1")):
        assert run(["test", f"runs/e/{name}"]) == 0
        tested = json.loads(Path(f"runs/e/{name}/results.json").read_text())
        for figure in ("top1", "agreement", "teacher_kl", "ece", "teacher_top1"):
            value = written["methods"]["at"]["figures"][figure]["values"][number]
            assert value == pytest.approx(tested[f"test/{figure}"], rel=1e-5), figure
        assert run(["test", f"runs/e/{name}", "--ckpt=best"]) == 0
        tested = json.loads(Path(f"runs/e/{name}/results.json").read_text())
        assert written["methods"]["at"]["figures"]["best_top1"]["values"][number] == pytest.approx(tested["test/top1"])
    page = Path("runs/e/report/report.html").read_text()
    lost = int(page.partition(" images gained, ")[2].split()[0])
    assert page.count("<span>student: ") == min(lost, 24), "what only the examined checkpoint gets wrong"
    assert "<h2>Features</h2>" in page
    assert "What the student gets wrong and the teacher right" in page


def test_what_is_asked_for(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    found = asked(["runs/e/teacher", "runs/e", "--ckpt=best", "--output", "o", "--data.init_args.root=d"])
    assert [run.path.name for run in found.runs] == ["teacher", "alone", "at-seed0", "at-seed1"]
    assert (found.output, found.ckpt, found.options) == (Path("o"), "best", ["--data.init_args.root=d"])
    assert asked(["runs/e/alone"]).output == Path("runs/e/report")
    mixed = asked(["runs/e/alone", "--data.init_args.root", "d", "--ckpt", "last", "runs/e/teacher"])
    assert [run.path.name for run in mixed.runs] == ["alone", "teacher"]
    assert (mixed.ckpt, mixed.options) == ("last", ["--data.init_args.root", "d"])


def test_a_run_that_has_not_finished_is_refused_and_told_where_it_is_one_of_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("done", "stopped"):
        Path("e", name).mkdir(parents=True)
        Path("e", name, "config.yaml").touch()
    Path("e/done/run.json").touch()
    found = asked(["e"])
    assert ([run.path.name for run in found.runs], [run.path.name for run in found.unfinished]) == (
        ["done"],
        ["stopped"],
    )
    assert run(["report", "e/done", "e/stopped"]) == 2
    assert "e/stopped has not finished: kd-lightning resume e/stopped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["report", "nowhere"], "nowhere is neither the folder of a run nor one of finished runs"),
        (["report", "runs/e", "--outputs=o"], "report has no option --outputs"),
        (["report", "runs/e", "--out=o"], "report has no option --out"),
    ],
)
def test_a_mistake_is_named(
    work: Path, line: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(work)
    assert run(line) == 2
    assert said in capsys.readouterr().err
