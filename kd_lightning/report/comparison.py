"""Teacher, student alone, student distilled: the comparison that a distillation is made for."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import NamedTuple

from rich.table import Table

from kd_lightning.report.cost import Cost

TEACHER, ALONE, DISTILLED = "teacher", "alone", "distilled"


class Row(NamedTuple):
    """A network's cost, and its top-1 in [0, 1] for each seed."""

    cost: Cost
    top1: Sequence[float]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return mean(self.top1)

    @property
    def std(self) -> float:
        """Sample standard deviation over the seeds, 0 for a single one."""
        return stdev(self.top1) if len(self.top1) > 1 else 0.0


def compression(rows: Mapping[str, Row]) -> float:
    """Parameters of the teacher over parameters of the student."""
    return rows[TEACHER].cost.params / rows[DISTILLED].cost.params


def gap_recovered(rows: Mapping[str, Row]) -> float | None:
    """(distilled - alone) / (teacher - alone) of the means; None where the teacher is not ahead."""
    gap = rows[TEACHER].mean - rows[ALONE].mean
    return (rows[DISTILLED].mean - rows[ALONE].mean) / gap if gap > 0 else None


def as_json(rows: Mapping[str, Row]) -> dict[str, object]:
    """The comparison as plain numbers."""
    return {
        "rows": {
            name: {**row.cost._asdict(), "top1_mean": row.mean, "top1_std": row.std, "top1": list(row.top1)}
            for name, row in rows.items()
        },
        "compression": compression(rows),
        "gap_recovered": gap_recovered(rows),
    }


def as_table(rows: Mapping[str, Row], title: str) -> Table:
    """The comparison as a table for the terminal."""
    recovered = gap_recovered(rows)
    share = "the teacher is not ahead" if recovered is None else f"{recovered:.0%} of the gap recovered"
    table = Table(title=title, caption=f"compression {compression(rows):.1f}x, {share}")
    for heading in ("", "parameters", "multiply-adds", "top-1 % (mean ± std)"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, row in rows.items():
        accuracy = f"{100 * row.mean:.2f} ± {100 * row.std:.2f}"
        table.add_row(name, f"{row.cost.params:,}", f"{row.cost.macs:,}", accuracy)
    return table
