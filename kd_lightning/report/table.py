"""The comparison of methods as tables: for the terminal, for Markdown, for the page."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.markup import escape
from rich.table import Table

from kd_lightning.report.methods import Row, Statistic

NOTHING = "-"


class TableData(NamedTuple):
    """Headings, and rows of as many cells; the first column says whose row it is."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def per_cent(figure: Statistic) -> str:
    """A share as per cent, with the deviation over the seeds where there are several."""
    return f"{100 * figure.mean:.2f}" + (f" ± {100 * figure.std:.2f}" if len(figure.values) > 1 else "")


def plain(figure: Statistic) -> str:
    """A figure with three decimals, with the deviation over the seeds where there are several."""
    return f"{figure.mean:.3f}" + (f" ± {figure.std:.3f}" if len(figure.values) > 1 else "")


REACHED: dict[str, tuple[str, Callable[[Statistic], str]]] = {
    "top1": ("top-1 %", per_cent),
    "best_top1": ("at the best checkpoint", per_cent),
    "teacher_top1": ("teacher's top-1 %", per_cent),
    "agreement": ("agreement %", per_cent),
    "teacher_kl": ("KL (nats)", plain),
    "ece": ("ECE %", per_cent),
}


def reached(rows: Sequence[Row]) -> TableData:
    """What each method reaches on the test images, over its seeds."""
    headings = ["", "seeds", *(heading for heading, _ in REACHED.values()), "gap recovered"]
    cells = [
        [
            row.method.name,
            str(len(row.method.runs)),
            *(shown(row.figures[name]) if name in row.figures else NOTHING for name, (_, shown) in REACHED.items()),
            NOTHING if row.gap_recovered is None else f"{row.gap_recovered:.0%}",
        ]
        for row in rows
    ]
    return TableData(headings, cells)


def parts(rows: Sequence[Row]) -> TableData:
    """What the parts of each method reach on the test images, over its seeds."""
    shown = {name: REACHED[name] for name in ("top1", "ece")}
    cells = [
        [f"{row.method.name}: {part}", *(write(figures[name]) for name, (_, write) in shown.items())]
        for row in rows
        for part, figures in row.parts.items()
    ]
    return TableData(["", *(heading for heading, _ in shown.values())], cells)


def costs(rows: Sequence[Row]) -> TableData:
    """What each method's student costs, and how much less than its teacher."""
    times = list(rows[0].method.runs[0].student_profile.latency)
    headings = ["", "parameters", "multiply-adds", "file"]
    headings += [f"ms on {time}" for time in times] + ["compression", *(f"speed-up on {time}" for time in times)]
    return TableData(headings, [_costs(row, times) for row in rows])


def _costs(row: Row, times: Sequence[str]) -> list[str]:
    profile = row.method.runs[0].student_profile
    return [
        row.method.name,
        f"{profile.params:,}",
        f"{profile.macs:,}",
        size(profile.bytes),
        *(f"{profile.latency[time]:.2f}" for time in times),
        NOTHING if row.compression is None else f"{row.compression:.1f}x",
        *(f"{row.speedup[time]:.2f}x" if time in row.speedup else NOTHING for time in times),
    ]


def size(count: int) -> str:
    """Bytes for a reader."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def width(table: TableData) -> int:
    """Characters that a table needs in a terminal so that no cell is broken."""
    columns = zip(table.headings, *table.rows, strict=True)
    return sum(max(map(len, column)) + 3 for column in columns) + 1


def turned(table: TableData) -> TableData:
    """Rows as columns."""
    first, *rest = zip(table.headings, *table.rows, strict=True)
    return TableData(first, rest)


def for_terminal(table: TableData, title: str, columns: int) -> Table:
    """A table for rich; turned where it is too wide for so many columns of characters, and less so when turned.

    Brackets in it are no markup.
    """
    if width(table) > max(columns, width(turned(table))):
        table = turned(table)
    made = Table(title=escape(title), title_justify="left")
    for number, heading in enumerate(table.headings):
        made.add_column(escape(heading), justify="right" if number else "left", overflow="fold")
    for cells in table.rows:
        made.add_row(*map(escape, cells))
    return made


def for_markdown(table: TableData) -> str:
    """A table in Markdown."""
    lines = [table.headings, ["---", *["---:"] * (len(table.headings) - 1)], *table.rows]
    escaped = [[cell.replace("|", r"\|") for cell in cells] for cells in lines]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in escaped)
