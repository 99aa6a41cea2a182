"""Teacher assistants from the command line: a chain of recipes is one command, each link a run of its own."""

from pathlib import Path

import pytest
import yaml

from kd_lightning.cli.commands import run
from kd_lightning.run_folder import RunFolder

CONFIGS = Path(__file__).parents[2] / "configs/digits"
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")


@pytest.mark.slow
def test_a_chain_is_one_command_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    links = {"teacher": "supervised/teacher", "assistant": "assistants/assistant", "student": "assistants/student"}
    for name, path in links.items():
        content = yaml.safe_load((CONFIGS / f"{path}.yaml").read_text())
        content["trainer"] |= {"max_epochs": 1, "enable_progress_bar": False}
        if name != "teacher":
            content["model"]["init_args"]["teacher"]["init_args"]["check"] = False
        text = yaml.safe_dump(content)
        for other, place in links.items():
            text = text.replace(f"configs/digits/{place}.yaml", f"{other}.yaml")
        (tmp_path / f"{name}.yaml").write_text(text)
    assert run(["fit", "--config", "student.yaml", "--experiment=e", "--run=s", *QUIET]) == 0
    student = RunFolder(Path("runs/e/s"))
    recipes = {path.name.partition("-")[0]: RunFolder(path) for path in Path("runs/recipes").iterdir() if path.is_dir()}
    assert set(recipes) == {"teacher", "assistant"}
    assert all(folder.record.exists() and folder.config.exists() for folder in (student, *recipes.values()))
    assert capfd.readouterr().out.count("training the recipe") == 2
    # The assistant was killed in its training, and the student had not begun.
    recipes["assistant"].record.unlink()
    before = recipes["teacher"].last.stat().st_mtime_ns
    assert run(["test", str(student.path), *QUIET]) == 0
    assert recipes["assistant"].record.exists()
    assert recipes["teacher"].last.stat().st_mtime_ns == before
    said = capfd.readouterr().out
    assert said.count("training the recipe") == 1
    assert f"resuming {recipes['assistant'].path}" in said
