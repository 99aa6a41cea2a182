"""The configurations that come with the package: found by name, from wherever they are asked for."""

import difflib
from pathlib import Path, PurePath

INSTALLED, BESIDE = Path(__file__).parent / "configs", Path(__file__).parents[1] / "configs"
CONFIGS = INSTALLED if INSTALLED.is_dir() else BESIDE  # an editable installation leaves them in the repository


def configs() -> dict[str, Path]:
    """Each configuration by its name: its path in their folder, as ``digits/offline/kd.yaml``."""
    return {path.relative_to(CONFIGS).as_posix(): path for path in sorted(CONFIGS.rglob("*.yaml"))}


def nearest(name: str, known: list[str]) -> list[str]:
    """Up to three names that ``name`` was probably meant to be: those of a file that is called alike first."""
    files = {each: PurePath(each).stem for each in known}
    alike = difflib.get_close_matches(PurePath(name).stem, set(files.values()), cutoff=0.8)
    meant = [each for file in alike for each in known if files[each] == file]
    return list(dict.fromkeys([*meant, *difflib.get_close_matches(name, known)]))[:3]


def found(name: str | Path) -> Path:
    """The file of this path, or else the configuration of this name; ``configs/`` may precede it.

    Raises:
        FileNotFoundError: if there is neither, with the nearest names.
    """
    if Path(name).is_file():
        return Path(name)
    known, inside = configs(), PurePath(name).as_posix().removeprefix("configs/")
    if inside in known:
        return known[inside]
    near = nearest(inside, list(known))
    hint = f"did you mean {' or '.join(near)}?" if near else "kd-lightning list configs shows those of the package"
    raise FileNotFoundError(f"there is no configuration {name}: {hint}")
