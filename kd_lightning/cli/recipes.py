"""Recipes: a teacher's weights may name the configuration that makes them; it is trained first, once.

That configuration may name a recipe of its own: so a chain of assistants is the same link repeated, each a run in a
folder of its own.
"""

import hashlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock
from jsonargparse import Namespace

from kd_lightning import packaged
from kd_lightning.cli.child import in_a_process, to_its_end
from kd_lightning.cli.run_naming import INHERITED, RUNS
from kd_lightning.models.filled_later import is_filled_later
from kd_lightning.models.network import AT_EPOCH
from kd_lightning.run_folder import RunFolder

EXPERIMENT = "recipes"
HURRIED = "KD_LIGHTNING_HURRIED"  # a dry run tells the recipes of its recipes how few steps are asked for
LAUNCHED = ("LOCAL_", "GROUP_", "ROLE_", "RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_", "TORCHELASTIC_", "SLURM_", "PL_")


def _recipes(node: Any) -> Iterator[Any]:
    """The nodes of a configuration that hold ``weights: {recipe: CONFIG}``."""
    if isinstance(node, Namespace | dict):
        items = vars(node) if isinstance(node, Namespace) else node
        weights = items.get("weights")
        if isinstance(weights, dict) and set(weights) == {"recipe"}:
            yield node
        for value in items.values():
            yield from _recipes(value)
    elif isinstance(node, list):
        for value in node:
            yield from _recipes(value)


def found_config(recipe: str, beside: Sequence[Path]) -> Path:
    """The file of a recipe: from the working folder, a folder above a configuration that names it, or the package.

    Raises:
        FileNotFoundError: if it is in none of them.
    """
    folders = [Path(), *(parent for config in beside for parent in config.resolve().parents)]
    for folder in folders:
        if (folder / recipe).is_file():
            return folder / recipe
    try:
        return packaged.found(recipe)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"weights.recipe: {error}") from error


def digest(config: Path, above: Sequence[Path] = ()) -> str:
    """A hash of the texts of a recipe and of those that it names.

    Args:
        config: The recipe.
        above: The recipes that led to it.

    Raises:
        ValueError: if a recipe leads back to itself.
    """
    if config.resolve() in above:
        circle = " -> ".join(path.name for path in (*above, config))
        raise ValueError(f"weights.recipe: a recipe must not need itself, got {circle}")
    text = config.read_bytes()
    named = [node["weights"]["recipe"].partition(AT_EPOCH)[0] for node in _recipes(yaml.safe_load(text))]
    parts = [digest(found_config(name, [config]), (*above, config.resolve())).encode() for name in named]
    return hashlib.sha256(b"".join([text, *parts])).hexdigest()


def run_of_recipe(config: Path, steps: int = 0) -> RunFolder:
    """Where the run of a recipe is: its name holds its `digest`, so an edited text, or teacher, makes another run."""
    hurried = f"-{steps}-steps" if steps else ""
    return RunFolder(RUNS / EXPERIMENT / f"{config.stem}-{digest(config)[:8]}{hurried}")


def train(config: Path, steps: int = 0) -> RunFolder:
    """The finished run of a recipe; trained, or resumed, by one process, while others wait.

    Args:
        config: The recipe.
        steps: Only so many batches of one epoch, for a dry run; 0 trains as the recipe says.

    Raises:
        ValueError: if the training fails.
    """
    folder = run_of_recipe(config, steps)
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder.path}.lock"):
        options = ["--config", str(config)]
        if steps:
            options += ["--trainer.max_epochs=1", f"--trainer.limit_train_batches={steps}"]
            options += [f"--trainer.limit_val_batches={steps}"]
        if (command := to_its_end(folder, options)) is None:
            return folder
        left_out = {INHERITED, HURRIED}
        environment = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHED) and k not in left_out}
        if steps:
            environment[HURRIED] = str(steps)
        print(f"kd-lightning: training the recipe {config} in {folder.path} first", flush=True)
        done = subprocess.run(in_a_process(command), env=environment, check=False)
        if done.returncode:
            raise ValueError(f"weights.recipe: training {config} ended with exit code {done.returncode}")
    return folder


def unexamined(node: Any) -> None:
    """Let every teacher of a configuration teach without an examination."""
    if isinstance(node, Namespace | dict):
        items = vars(node) if isinstance(node, Namespace) else node
        if "check" in items and "network" in items:
            node["check"] = False
        for value in items.values():
            unexamined(value)


def resolve_recipes(config: Namespace, beside: Sequence[Path], replace: bool) -> None:
    """Find every recipe's file and, with ``replace``, put the folder of its finished run in its place.

    Where networks are `filled_later`, nothing is found and nothing trained: the recipes stay as they are.

    In a fast_dev_run a recipe that has no finished run is trained for as few steps, as are those that it needs, and who
    learns from it does not examine it.
    """
    for node in [] if is_filled_later() else list(_recipes(config)):
        name, at, epoch = node["weights"]["recipe"].partition(AT_EPOCH)
        path = found_config(name, beside)
        if not replace:
            node["weights"] = {"recipe": f"{path}{at}{epoch}"}
            continue
        steps = int(config.trainer.get("fast_dev_run") or os.environ.get(HURRIED, 0))
        if run_of_recipe(path).record.exists():
            steps = 0
        run = train(path, steps)
        node["weights"] = str(run.path) if steps else f"{run.path}{at}{epoch}"  # after so few steps there is no epoch
        if steps:
            unexamined(config)
