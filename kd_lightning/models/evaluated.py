"""The student of a Lightning checkpoint, as the run evaluates it."""

from collections.abc import Mapping
from typing import Any

STUDENT = "student"  # what holds the student among the entries of a checkpoint's state dict
AVERAGE, EVALUATED = (
    "ema",
    "ema_evaluated",
)  # in a checkpoint: the moving average, and whether it is evaluated
OF_AVERAGE = "module"  # what holds the student among the average's entries


def below(state: object, name: str) -> dict[str, Any]:
    """The entries ``name.…`` of a state dict, by the rest of their names; none of anything else."""
    entries = state.items() if isinstance(state, Mapping) else ()
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for entry, value in entries if (key := str(entry)).startswith(prefix)}


def evaluated_student(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The student of a Lightning checkpoint under its own names; nothing where it holds none.

    It is the moving average where the run evaluates that, so it is what the run's figures are of. An average that does
    not say whether it is evaluated is.
    """
    average = below(checkpoint.get(AVERAGE), OF_AVERAGE) if checkpoint.get(EVALUATED, True) else {}
    return average or below(checkpoint.get("state_dict"), STUDENT)
