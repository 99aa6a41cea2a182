"""Which runs are one method: those whose configurations differ in nothing but their seed."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kd_lightning.models.network import AT_EPOCH
from kd_lightning.models.peer_weights import OF_PEER
from kd_lightning.report.naming import Config, Run, names_of
from kd_lightning.run_folder import RunFolder

# What names a run or is shown or written beside the training, and the seeds.
ASIDE = frozenset(
    [
        "seed_everything",
        "experiment",
        "run",
        "ckpt_path",
        "data.init_args.seed",
        "checkpoints.every_epochs",
        "checkpoints.every_steps",
        "checkpoints.keep_every_epochs",
        "trainer.logger",
        "trainer.log_every_n_steps",
        "trainer.default_root_dir",
        "trainer.profiler",
        "trainer.enable_progress_bar",
        "trainer.enable_model_summary",
        "trainer.enable_checkpointing",
        "trainer.enable_autolog_hparams",
        "trainer.model_registry",
        "trainer.num_sanity_val_steps",
    ]
)
ONLOOKERS = re.compile(r"(Progress|ProgressBar|ModelSummary|Monitor|WandbReport)$")  # callbacks that change nothing
ORIGIN = re.compile(f"(.*?)((?:{re.escape(AT_EPOCH)}|{re.escape(OF_PEER)}).*)?")  # a run, and what of it is meant


def recipe_of(config: Config, above: Sequence[Path] = ()) -> dict[str, Any]:
    """What a configuration trains, whatever its seed.

    Left out are `ASIDE` and callbacks that only look on. A network whose ``weights`` are another run's folder has that
    run's recipe in its place: teachers of one recipe with different seeds are the same.

    Args:
        config: Of a run, as ``yaml.safe_load`` gives it. It is not changed.
        above: Folders of the runs that led to it.
    """
    made: dict[str, Any] = _without(config, "", above)
    trainer = made.setdefault("trainer", {})
    callbacks = trainer.get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    trainer["callbacks"] = [each for each in callbacks if not ONLOOKERS.search(each["class_path"])]
    return made


def _without(node: Any, place: str, above: Sequence[Path]) -> Any:
    if isinstance(node, list):
        return [_without(value, place, above) for value in node]
    if not isinstance(node, Mapping):
        return node
    places = {key: f"{place}.{key}".lstrip(".") for key in node}
    return {
        key: _origin(value, above) if key == "weights" else _without(value, places[key], above)
        for key, value in node.items()
        if places[key] not in ASIDE
    }


def _origin(weights: Any, above: Sequence[Path]) -> Any:
    """The recipe of the run that weights are of, and what of it; the weights as they are said otherwise."""
    if not isinstance(weights, str) or (match := ORIGIN.fullmatch(weights)) is None:
        return weights
    folder = Path(match[1]).resolve()
    config = RunFolder(folder).config
    if folder in above or not config.is_file():
        return weights
    return {"run": recipe_of(yaml.safe_load(config.read_text()), (*above, folder)), "of it": match[2]}


def by_method(configs: Mapping[str, Config]) -> dict[str, list[str]]:
    """Runs grouped by what they train; the groups and the runs in them keep their order.

    The names are those of `names_of`.

    Args:
        configs: Name or folder of a run -> its configuration.
    """
    groups: dict[frozenset[tuple[tuple[str, ...], str]], list[Run]] = {}
    for run in configs.items():
        groups.setdefault(frozenset(_leaves(recipe_of(run[1]), ())), []).append(run)
    names = names_of(list(groups.values()), [dict(settings) for settings in groups])
    return {name: [run for run, _ in group] for name, group in zip(names, groups.values(), strict=True)}


def _leaves(node: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, (*place, str(key)))
    else:
        yield place, str(node)
