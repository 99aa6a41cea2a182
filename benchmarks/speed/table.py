"""The table, in Markdown that is aligned for the terminal too."""

from collections.abc import Mapping, Sequence
from typing import Any

# Ratio -> the least that is wanted on 2 CPU cores.
WANTED = {
    "warm_over_floor": 0.95,
    "warm_over_timm_fastest": 1.8,
    "warm_over_torchdistill": 4.0,
    "online_over_timm_fastest": 1.05,
    "loader_over_torchvision": 10.0,
    "two_ranks_over_one": 1.8,
}
SAID = {
    "floor": "student only, bare loop (floor)",
    "warm": "ours, stored outputs",
    "cold": "ours, outputs being stored",
    "online": "ours, online teacher",
    "timm_default": "timm's task, default (float32)",
    "timm_fastest": "timm's task, fastest (bf16, channels_last)",
    "torchdistill": "torchdistill (float32)",
    "loader": "loader alone: ours",
    "torchvision": "loader alone: torchvision, PIL",
    "one_rank": "1 rank, 1 core (stored outputs)",
    "two_ranks": "2 ranks, 2 cores (stored outputs)",
    "bare": "tiny network, 5 terms: bare loop",
    "lightning": "tiny network, 5 terms: Lightning",
    "kd_lightning": "tiny network, 5 terms: ours",
}


def spread(figures: Mapping[str, float], digits: int) -> str:
    """Median and range."""
    median, least, most = (f"{figures[key]:,.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({least}–{most})"  # noqa: RUF001


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Markdown of rows, the first of which is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in rows]
    return "\n".join([lines[0], f"|{'|'.join('-' * (width + 2) for width in widths)}|", *lines[1:]])


def contender_rows(contenders: Mapping[str, Any]) -> list[list[str]]:
    """A row for each contender."""
    rows = []
    for name, figures in contenders.items():
        if "missing" in figures:
            rows.append([SAID[name], figures["missing"], "", "", "", ""])
            continue
        images, step = spread(figures["images_per_second"], 0), spread(figures["step_ms"], 2)
        memory = f"{figures['peak_mb']:,}"
        if "device_peak_mb" in figures:
            memory += f" + {figures['device_peak_mb']:,} on the GPU"
        rows.append([SAID[name], images, step, memory, f"{figures['startup_seconds']:.1f}", figures.get("note", "")])
    return rows


def table(results: Mapping[str, Any]) -> str:
    """All results."""
    head = ["", "images/s", "ms per step", "peak MB of the main process", "start-up s", ""]
    lines = [
        f"{results['machine']}; {results['threads']} threads; {results['data']}; batch {results['batch']}; "
        f"{results['rounds']} rounds, medians with range; {results['date']}, commit {results['commit']}"
    ]
    for name, pair in results["pairs"].items():
        lines += ["", f"{name}, {pair['images']:,} images of {pair['data']}:", ""]
        lines.append(aligned([head, *contender_rows(pair["contenders"])]))
    others = [row for part in ("loaders", "ranks", "overhead") for row in contender_rows(results[part]["contenders"])]
    lines += ["", aligned([head, *others]), ""]
    costs = results["overhead"]["costs"]
    lines.append(
        f"Overhead of ours: {spread(costs['over_bare_ms'], 2)} ms per step (Lightning alone "
        f"{spread(costs['lightning_over_bare_ms'], 2)}), {costs['percent_of_floor_step']['median']:.1f} % of a step of "
        f"the floor. kd-lightning --help: {spread(results['help_seconds'], 2)} s."
    )
    found = [
        [name, "not measured" if ratio is None else spread(ratio, 3), f"{WANTED[name]:g}"]
        for name, ratio in results["ratios"].items()
    ]
    return "\n".join([*lines, "", aligned([["ratio", "median (range)", "wanted on 2 CPU cores"], *found])])
