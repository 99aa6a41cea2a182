"""The folder of an export: filled whole or not at all, and brought to the Hugging Face hub."""

import glob
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from kd_lightning.export.formats import SUFFIXES

CARD, PREPROCESSING, CLASSES, CONFIG = "README.md", "preprocessing.json", "classes.json", "config.json"
OF_ITS_OWN = "give the export a folder of its own, as --output EXPORT/FILE"


def check_folder(folder: Path, file: str) -> None:
    """Let a folder pass in which a model card may be written.

    Args:
        folder: Where to.
        file: Name of the exported file; an earlier one of this name is replaced.

    Raises:
        ValueError: if it has a README.md that no export wrote, or another network, which the card would no longer be
            of.
    """
    if (folder / CARD).exists() and not (folder / PREPROCESSING).exists():
        raise ValueError(
            f"--output: {folder / CARD} is no model card of an export, and would be overwritten: " + OF_ITS_OWN
        )
    others = sorted(each.name for each in folder.glob("*") if each.suffix in SUFFIXES.values() and each.name != file)
    if others:
        raise ValueError(f"--output: {folder} holds {others[0]}, and one card is of one network: {OF_ITS_OWN}")


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files move into another when the context is left without an error."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".export-", dir=folder) as temporary:
        yield Path(temporary)
        for file in sorted(Path(temporary).iterdir()):
            file.replace(folder / file.name)


def push(repo_id: str, folder: Path, names: Sequence[str]) -> str:
    """Bring files of a folder to a repository of the Hugging Face hub, which is made where there is none.

    Args:
        repo_id: Of the repository, as ``user/name``.
        folder: The export's.
        names: Of its files; nothing else that lies there goes along.

    Returns:
        The address of the commit.

    Raises:
        OSError: if it did not come there.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="kd-lightning")
    try:
        made = api.create_repo(repo_id, exist_ok=True)
        commit = api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            allow_patterns=[glob.escape(name) for name in names],
            commit_message=f"Upload {names[0]}",
        )
    except Exception as error:  # the library that speaks HTTP for the client has errors of its own
        raise OSError(f"{folder} is written, but {repo_id} on the Hugging Face hub was not: {error}") from error
    return str(commit)
