"""The metrics file: the local record of all that was logged, which a resumed run continues."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from kd_lightning.whole_file import write_text

FIRST = ("step", "epoch")


class MetricsFile(Logger):
    """Writes each logged set of figures as a row of a CSV file, at once.

    Lightning's own CSV logger deletes the file of a run that is resumed. Here a resumed run drops the rows after the
    step that it starts from, and goes on; so the file equals an uninterrupted run's.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.columns: list[str] = []
        self.rows: list[dict[str, str]] = []
        if path.is_file():
            with path.open(newline="") as file:
                reader = csv.DictReader(file)
                self.rows, self.columns = list(reader), list(reader.fieldnames or [])

    @property
    def name(self) -> str:
        """Nothing: the folder is the run's own."""
        return ""

    @property
    def version(self) -> str:
        """Nothing: the folder is the run's own."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder of the file."""
        return str(self.path.parent)

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Forget the rows after a step."""
        kept = [row for row in self.rows if int(row["step"]) <= step]
        if len(kept) != len(self.rows):
            self.rows = kept
            self._rewrite()

    def last(self, figure: str) -> float | None:
        """The last value of a figure, of an earlier part of the training too; None if there is none."""
        values = [row[figure] for row in self.rows if row.get(figure)]
        return float(values[-1]) if values else None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row, or fill gaps of the last one where it is of the same step."""
        row = {"step": str(step or 0), **{name: repr(float(value)) for name, value in metrics.items()}}
        if "epoch" in row:
            row["epoch"] = str(int(metrics["epoch"]))
        last = self.rows[-1] if self.rows else {}
        if last.get("step") == row["step"] and all(last.get(key, "") in ("", value) for key, value in row.items()):
            last.update(row)
            self._rewrite(row)
            return
        self.rows.append(row)
        if set(row) <= set(self.columns):
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns, restval="").writerow(row)
        else:
            self._rewrite(row)

    def _rewrite(self, row: Mapping[str, str] | None = None) -> None:
        known = [*self.columns, *(row or {})]
        self.columns = [*FIRST, *sorted({name for name in known if name not in FIRST})]
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml is the record."""
