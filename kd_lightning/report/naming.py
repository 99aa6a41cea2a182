"""What methods are called: by the shortest names that tell them apart."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Config = Mapping[str, Any]
Run = tuple[str, Config]  # name or folder, and configuration
Settings = Mapping[tuple[str, ...], str]  # where in a configuration -> what

SEED = re.compile(r"(?:[-_. ]+(?:seed|s)?|seed)[-_. ]*\d+$")  # what tells the runs of one method apart


def names_of(groups: Sequence[Sequence[Run]], settings: Sequence[Settings]) -> list[str]:
    """A name for each group of runs, no two alike.

    By the first of these that tells all groups apart: their experiment, the names of their runs without the seeds,
    their criteria. Where none does, the experiment, or the criteria, with the settings that differ.

    Args:
        groups: Of one method each.
        settings: What each of them trains; no two alike.
    """
    ways: list[Callable[[Sequence[Run]], str]] = [_experiment, _seedless, _criteria]
    for way in ways:
        names = [way(group) for group in groups]
        if all(names) and len(set(names)) == len(names):
            return names
    names = [_experiment(group) or _criteria(group) for group in groups]
    made = list(names)
    for name in set(names):
        same = [number for number, other in enumerate(names) if other == name]
        for number, told in zip(same, differing([settings[number] for number in same]), strict=True):
            made[number] = f"{name} ({told})" if told else name
    return made


def _experiment(group: Sequence[Run]) -> str:
    """The experiment that all runs are of; empty if there is none."""
    found = {str(config.get("experiment") or "") for _, config in group}
    return found.pop() if len(found) == 1 else ""


def _seedless(group: Sequence[Run]) -> str:
    """The name of the runs without the seed; empty if they have several, or it has no letter, as a time stamp."""
    found = {SEED.sub("", Path(run).name) for run, _ in group}
    name = found.pop()
    return name if not found and any(map(str.isalpha, name)) else ""


def _criteria(group: Sequence[Run]) -> str:
    """The names of the terms, or the scheme where it has none."""
    model = group[0][1]["model"]
    return "+".join(model["init_args"].get("criteria") or ()) or str(model["class_path"]).rpartition(".")[2]


def differing(settings: Sequence[Settings]) -> list[str]:
    """What tells each from the others, in as few settings as are found; empty for a single one.

    Args:
        settings: No two alike.
    """
    places = sorted({place for each in settings for place in each}, key=lambda place: (len(place), place))
    chosen: list[tuple[str, ...]] = []

    def apart(by: Sequence[tuple[str, ...]]) -> int:
        return len({tuple(each.get(place) for place in by) for each in settings})

    while apart(chosen) < len(settings):
        chosen.append(max(places, key=lambda place: apart([*chosen, place])))
    return [", ".join(f"{_short(place)} {each.get(place, 'none')}" for place in chosen) for each in settings]


def _short(place: Sequence[str]) -> str:
    return ".".join([part for part in place if part not in {"init_args", "class_path"}][-2:])
