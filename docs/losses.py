"""Writes ``docs/losses.md`` from the docstrings of the losses and the figures of ``benchmarks/losses.json``."""

import inspect
import json
import re
import textwrap
from pathlib import Path
from typing import Any

from docstring_parser import parse

from kd_lightning import losses
from kd_lightning.losses import Loss

FOLDER = Path(__file__).parent
WIDTH = 120
PAGE = FOLDER / "losses.md"
FIGURES = FOLDER.parent / "benchmarks" / "losses.json"
INTRO = """# Losses

Made from the docstrings by `make docs`. In a YAML a loss is a term of the criteria, by its class name; a loss of your
own by its `class_path`. Logits are `[N, C]`, p = softmax(z / T). Taps are what a loss looks at unless the term's
`student` and `teacher` say otherwise; `configs/` has a configuration for each but
`ReferenceSoftTarget`, with its published weights or a word where they are not published.

Time is that of a training step over the same step with `SoftTarget` ({reference_ms} ms): {pair}, batch {batch},
{precision}; {device}, torch {torch}; the median of {rounds} rounds of {steps} steps (`make bench-losses`). Parameters
are those that the loss adds to the training, none of which is exported.
"""


def public_losses() -> dict[str, type[Loss]]:
    """The losses of the package by name."""
    found = {name: getattr(losses, name) for name in losses.__all__}
    return {
        name: kind
        for name, kind in sorted(found.items(), key=lambda item: item[0].lower())
        if isinstance(kind, type) and issubclass(kind, Loss) and kind is not Loss
    }


def taps(value: object) -> str:
    """A tap or taps as text."""
    return "none" if value is None else f"`{value}`"


def looks_at_labels(kind: type[Loss]) -> bool:
    """Whether a loss looks at the labels; its docstrings say where it does not."""
    told = f"{inspect.getdoc(kind)} {inspect.getdoc(kind.forward)}"
    return re.search(r"labels\s+(themselves\s+)?are\s+not\s+looked\s+at", told) is None


def needed(kind: type[Loss]) -> str:
    """What a loss needs besides the images."""
    found = ["labels"] if looks_at_labels(kind) else []
    found += ["features"] if "logits" not in (kind.student_tap, kind.teacher_tap) else []
    found += ["same classes"] if kind.teacher_tap == "logits" or "student_classifier" in kind.needs else []
    return ", ".join([*found, *sorted(need.replace("_", " ") for need in kind.needs)]) or "nothing"


def cost(name: str, figures: dict[str, Any]) -> tuple[str, str]:
    """Extra parameters and relative time as text."""
    if name not in figures:
        return "-", "-"
    return f"{figures[name]['extra_parameters']:,}", f"{figures[name]['relative_time']:.2f}x"


def section(name: str, kind: type[Loss]) -> str:
    """One loss: formula, source, arguments."""
    told = parse(inspect.getdoc(kind) or "")
    defaults = inspect.signature(kind).parameters
    lines = [f"## {name}", "", told.short_description or ""]
    if told.long_description:
        lines += ["", told.long_description]
    lines += ["", f"- Taps: student {taps(kind.student_tap)}, teacher {taps(kind.teacher_tap)}"]
    lines += [f"- Needs: {needed(kind)}"]
    for parameter in told.params:
        default = defaults[parameter.arg_name].default
        shown = "" if default is inspect.Parameter.empty else f" = {default!r}"
        lines.append(f"- `{parameter.arg_name}{shown}`: {' '.join((parameter.description or '').split())}")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    results = json.loads(FIGURES.read_text(encoding="utf-8"))
    kinds = public_losses()
    rows = ["| loss | taps | needs | parameters | time |", "|---|---|---|--:|--:|"]
    for name, kind in kinds.items():
        parameters, time = cost(name, results["losses"])
        shown = taps(kind.student_tap)
        rows.append(f"| [{name}](#{name.lower()}) | {shown} | {needed(kind)} | {parameters} | {time} |")
    sections = [section(name, kind) for name, kind in kinds.items()]
    intro = [
        textwrap.fill(part, WIDTH, break_on_hyphens=False)
        for part in INTRO.format(**results["setting"]).rstrip().split("\n\n")
    ]
    return "\n\n".join([*intro, "\n".join(rows), *sections]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
