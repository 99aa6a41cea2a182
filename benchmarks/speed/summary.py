"""Medians with spread, and the ratios that the benchmark is about."""

import statistics
from collections.abc import Mapping, Sequence
from typing import TypeAlias

Summary: TypeAlias = dict[str, float]

# Name -> whose images per second over whose.
RATIOS = {
    "warm_over_floor": ("warm", "floor"),
    "warm_over_timm_fastest": ("warm", "timm_fastest"),
    "warm_over_torchdistill": ("warm", "torchdistill"),
    "online_over_timm_fastest": ("online", "timm_fastest"),
    "loader_over_torchvision": ("loader", "torchvision"),
    "two_ranks_over_one": ("two_ranks", "one_rank"),
}


def summary(values: Sequence[float]) -> Summary:
    """Median, least and greatest.

    Raises:
        ValueError: if there are no values.
    """
    if not values:
        raise ValueError("values must be one number at least, got none")
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def paired(over: Sequence[float], under: Sequence[float]) -> Summary | None:
    """Summary of the ratios within each round; None where one of them was not measured.

    Raises:
        ValueError: if they have different numbers of rounds.
    """
    if not over or not under:
        return None
    if len(over) != len(under):
        raise ValueError(f"both must have as many rounds, got {len(over)} and {len(under)}")
    return summary([a / b for a, b in zip(over, under, strict=True)])


def ratios(rates: Mapping[str, Sequence[float]]) -> dict[str, Summary | None]:
    """All ratios.

    Args:
        rates: Contender -> images per second in each round; one that is missing or empty has no ratios.
    """
    return {name: paired(rates.get(over, ()), rates.get(under, ())) for name, (over, under) in RATIOS.items()}


def differences(over: Sequence[float], under: Sequence[float]) -> Summary:
    """Summary of the differences within each round.

    Raises:
        ValueError: if they have different numbers of rounds, or none.
    """
    if len(over) != len(under):
        raise ValueError(f"both must have as many rounds, got {len(over)} and {len(under)}")
    return summary([a - b for a, b in zip(over, under, strict=True)])
