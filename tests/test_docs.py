import contextlib
import importlib
import importlib.util
import io
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image, ImageColor

from kd_lightning.cli.commands import OF_RUNS
from kd_lightning.cli.door import Door
from kd_lightning.report.drawing.inks import inks

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
PAGES = sorted((REPOSITORY / "docs").glob("*.md"))
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in [*PAGES, REPOSITORY / "README.md"]}
OF_CONFIGURATIONS = {"fit", "validate", "test", "predict"}  # LightningCLI's
OF_THE_CALL = {"--allow", "--ckpt", "--help", "--version"}  # taken before LightningCLI looks
FORMULA = re.compile(r"\|\||\^|log|KL|1 - | / | [x+] |\b(mean|sum|squared|cross entropy)\b", re.IGNORECASE)
OPTION = re.compile(r"(?<![\w-])--[a-z][\w.-]*")


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
        formula, source, _ = part.partition("Source")
        assert FORMULA.search(formula.partition("- Taps")[0]), name
        assert source or name == "CrossEntropy", name
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


def spoken() -> Iterator[tuple[str, str, str]]:
    """Page, command and arguments of each command line, in blocks and between backticks; "" for bare options."""
    for page, text in TEXTS.items():
        blocks = re.findall(r"(?:^ {4}.*\n)+", text, flags=re.MULTILINE)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        for code in [*lines, *re.findall(r"`([^`]+)`", text)]:
            said = " ".join(code.partition(" # ")[0].split())
            if found := re.match(r"kd-lightning (\w+)(.*)|()(--.*)", said):
                yield page, found[1] or "", found[2] or found[4] or ""


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """The options of each command that has a parser of its own, and of all others by the name ``fit``."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), pytest.raises(SystemExit):
        Door(["fit", "--help"])
    found = {"fit": set(OPTION.findall(told.getvalue())) | OF_THE_CALL}
    for command in OF_RUNS:
        help_of = importlib.import_module(f"kd_lightning.cli.{command}").parser().format_help()
        found[command] = set(OPTION.findall(help_of))
    return found


@pytest.fixture(scope="module")
def sources() -> str:
    return "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "kd_lightning").rglob("*.py"))


def test_every_command_and_option_exists(options: dict[str, set[str]], sources: str) -> None:
    known = OF_CONFIGURATIONS | OF_RUNS | {"resume", "list"}
    for page, command, arguments in spoken():
        assert not command or command in known, f"{page}: kd-lightning {command}"
        takes = options[command if command in OF_RUNS else "fit"] if command else set().union(*options.values())
        for option in OPTION.findall(arguments):
            if option.startswith(("--model.", "--data.")):  # what they take depends on the class
                assert re.search(rf"\b{option.rpartition('.')[2]}\b", sources), f"{page}: {option}"
            else:
                assert option in takes, f"{page}: kd-lightning {command} {option}"


def test_every_page_is_reached_from_the_index() -> None:
    trees = re.findall(r"```{toctree}\n(.*?)```", TEXTS["index.md"], flags=re.DOTALL)
    named = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    assert sorted([*named, "index"]) == [path.stem for path in PAGES]


def test_every_notebook_is_linked() -> None:
    linked = re.findall(r"\(\.\./notebooks/(\w+\.ipynb)\)", TEXTS["getting_started.md"])
    assert sorted(linked) == sorted(path.name for path in (REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("page", TEXTS)
def test_every_configuration_that_is_named_exists(page: str) -> None:
    named = re.findall(r"configs/[\w./]*\.(?:yaml|sh)", TEXTS[page])
    assert [name for name in named if not (REPOSITORY / name).is_file()] == []


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    copied = shutil.copytree(REPOSITORY / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("_build", "api"))
    for name in ("CONTRIBUTING.md", "CHANGELOG.md", "notebooks", "benchmarks"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    sphinx = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run([*sphinx, copied, tmp_path / "site"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    site = (tmp_path / "site/schemes.html").read_text(encoding="utf-8")
    assert "<math" in site
    for room in ("losses", "models", "distillers", "datamodules", "callbacks", "report"):
        page = (tmp_path / f"site/api/kd_lightning.{room}.html").read_text(encoding="utf-8")
        public = importlib.import_module(f"kd_lightning.{room}").__all__
        assert [name for name in public if f'id="kd_lightning.{room}.{name}"' not in page] == []


def test_the_pythons_are_those_of_the_package() -> None:
    with (REPOSITORY / "pyproject.toml").open("rb") as opened:
        classifiers = tomllib.load(opened)["project"]["classifiers"]
    versions = [found[1] for each in classifiers if (found := re.fullmatch(r".*:: Python :: (3\.\d+)", each))]
    stated = f"Python {', '.join(versions[:-1])} or {versions[-1]}"
    for name in ("README.md", "docs/getting_started.md", "CONTRIBUTING.md", ".ci/run"):
        assert stated in (REPOSITORY / name).read_text(encoding="utf-8"), name


def test_each_method_has_its_colour_in_the_picture_of_the_report() -> None:
    with Image.open(REPOSITORY / "docs/report.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(picture.width * picture.height)}
    for name, ink in inks(["teacher", "alone", "distilled"]).items():
        assert ImageColor.getrgb(ink.colour) in colours, name
