import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kd_lightning

PACKAGE = Path(kd_lightning.__file__).parent
LEAVES = frozenset({"batch", "length", "packaged", "ranks", "run_folder", "seeds", "trust", "whole_file"})
DOORS = frozenset({"__main__", "cli", "quickstart"})
# Room -> what of the package its files may import besides the leaves and the room itself.
MAY = {
    **{leaf: frozenset() for leaf in (*LEAVES, "__init__")},
    "losses": frozenset(),
    "models": frozenset(),
    "datamodules": frozenset(),
    "distillers": frozenset({"losses.base", "models"}),
    "callbacks": frozenset({"distillers", "models"}),
    "report": frozenset({"distillers", "models"}),
    "export": frozenset({"distillers", "models"}),
}
# The plain training of a teacher has one term, so its loss is no configuration.
EXCEPTIONS = {"distillers/classifier.py": {"losses.CrossEntropy"}}
LIGHTNING = frozenset({"lightning", "lightning_fabric", "pytorch_lightning"})
WITHOUT_LIGHTNING = frozenset({"losses", "models", *LEAVES})


def imports(source: str) -> Iterator[str]:
    """Dotted names that a file imports, wherever in it, under a condition or inside a function too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level
            yield from (f"{dots}{node.module or ''}.{alias.name}" for alias in node.names)


def within(name: str, allowed: str) -> bool:
    return name == allowed or name.startswith(f"{allowed}.")


def violations(file: str, source: str) -> list[str]:
    """What a file of the package imports and should not; ``file`` is its path inside the package."""
    room = Path(file).parts[0].removesuffix(".py")
    wrong = []
    for name in imports(source):
        root, _, inside = name.partition(".")
        if name.startswith("."):
            wrong.append(name)
        elif root in LIGHTNING:
            wrong += [name] if room in WITHOUT_LIGHTNING else []
        elif root == "kd_lightning" and room not in DOORS:
            # A leaf stands alone: what everyone imports may import no one, not even another leaf.
            leaves = frozenset() if room in LEAVES else LEAVES
            allowed = {room} | leaves | MAY[room] | EXCEPTIONS.get(file, set())
            wrong += [] if any(within(inside, part) for part in allowed) else [name]
    return wrong


FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_what_its_room_may(file: str) -> None:
    assert violations(file, (PACKAGE / file).read_text(encoding="utf-8")) == []


def test_every_room_is_walked() -> None:
    rooms = {Path(file).parts[0].removesuffix(".py") for file in FILES}
    assert rooms == set(MAY) | DOORS


def test_the_exceptions_are_needed() -> None:
    for file, names in EXCEPTIONS.items():
        found = set(imports((PACKAGE / file).read_text(encoding="utf-8")))
        assert {f"kd_lightning.{name}" for name in names} <= found


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("losses/new.py", "import lightning.pytorch as pl"),
        ("models/new.py", "from lightning.pytorch import Trainer"),
        ("models/new.py", "def f():\n    import pytorch_lightning"),
        ("losses/new.py", "from kd_lightning.models import Network"),
        ("models/new.py", "from kd_lightning import losses"),
        ("datamodules/new.py", "import kd_lightning.models.network"),
        ("datamodules/new.py", "from kd_lightning.distillers import Distiller"),
        ("distillers/new.py", "from kd_lightning.losses import CrossEntropy"),
        ("distillers/new.py", "from kd_lightning.losses.soft_target import SoftTarget"),
        ("distillers/new.py", "from kd_lightning import datamodules"),
        ("distillers/classifier.py", "from kd_lightning.losses import CrossEntropy, SoftTarget"),
        ("callbacks/new.py", "from kd_lightning.cli import front"),
        ("report/new.py", "if TYPE_CHECKING:\n    from kd_lightning.losses import Loss"),
        ("callbacks/new.py", "from ..models import Network"),
        ("batch.py", "from kd_lightning.seeds import hashed"),
        ("seeds.py", "import lightning"),
    ],
)
def test_a_forbidden_import_is_found(file: str, source: str) -> None:
    assert len(violations(file, source)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("models/new.py", "from kd_lightning.trust import imported\nfrom kd_lightning.models.taps import tapped"),
        ("distillers/new.py", "import lightning\nfrom kd_lightning.losses.base import Loss"),
        ("callbacks/new.py", "from kd_lightning.distillers import Distiller"),
        ("cli/new.py", "import kd_lightning.distillers as distillers"),
    ],
)
def test_a_permitted_import_passes(file: str, source: str) -> None:
    assert violations(file, source) == []


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        ("kd_lightning.cli.front", {"torch", "lightning", "timm", "jsonargparse"}),
        ("kd_lightning.losses, kd_lightning.models", set(LIGHTNING)),
    ],
)
def test_an_import_loads_no_more_than_it_needs(modules: str, unwanted: set[str]) -> None:
    code = f"import sys, {modules}\nprint(*sorted({unwanted} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == []
