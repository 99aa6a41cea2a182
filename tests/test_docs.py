import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

# By a step from ResNet-56 to ResNet-20: these are for transformers, several views, or generated images.
UNMEASURED = {
    "Activation",
    "AttentionProbabilities",
    "BatchNormStatistics",
    "ClassBalance",
    "DINO",
    "Discrepancy",
    "OneHot",
}
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_losses", REPOSITORY / "docs/losses.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_losses_is_current(generator: ModuleType) -> None:
    assert (REPOSITORY / "docs/losses.md").read_text(encoding="utf-8") == generator.page(), "run make docs"


def test_every_loss_has_formula_source_arguments_and_cost(generator: ModuleType) -> None:
    page = generator.page()
    for name, kind in generator.public_losses().items():
        part = page.partition(f"## {name}\n")[2].partition("\n## ")[0]
        if name != "CrossEntropy":
            assert "Source" in part, name
        assert "- Taps: student" in part, name
        assert "- Needs:" in part, name
        for argument in kind.__init__.__code__.co_varnames[1 : kind.__init__.__code__.co_argcount]:
            if "__init__" in vars(kind):
                assert f"- `{argument}" in part, (name, argument)
        row = next(line for line in page.splitlines() if line.startswith(f"| [{name}]"))
        assert name in UNMEASURED or row.rstrip(" |").endswith("x"), row


def test_what_needs_labels_is_told(generator: ModuleType) -> None:
    with_labels = {name for name, kind in generator.public_losses().items() if generator.looks_at_labels(kind)}
    assert with_labels == {
        "CrossEntropy",
        "CRD",
        "CWTM",
        "CurriculumTemperature",
        "DKD",
        "InBatchCRD",
        "NKD",
        "OFA",
        "TeacherFree",
        "OneHot",
        "WSLD",
    }
