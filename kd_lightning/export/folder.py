"""The folder of an export: filled whole or not at all, and brought to the Hugging Face hub."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

CARD, PREPROCESSING, CLASSES, CONFIG = "README.md", "preprocessing.json", "classes.json", "config.json"


def check_folder(folder: Path) -> None:
    """Let a folder pass in which a model card may be written.

    Raises:
        ValueError: if it has a README.md that no export wrote.
    """
    if (folder / CARD).exists() and not (folder / PREPROCESSING).exists():
        raise ValueError(
            f"--output: {folder / CARD} is no model card of an export, and would be overwritten: "
            "give the export a folder of its own, as --output EXPORT/FILE"
        )


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
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="kd-lightning")
    made = api.create_repo(repo_id, exist_ok=True)
    commit = api.upload_folder(
        repo_id=made.repo_id, folder_path=folder, allow_patterns=list(names), commit_message=f"Upload {names[0]}"
    )
    return str(commit)
