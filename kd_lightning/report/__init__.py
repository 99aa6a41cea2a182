"""What came of it: comparisons, costs, pictures."""

from kd_lightning.report.comparison import Row, as_json, as_table
from kd_lightning.report.cost import Cost, cost
from kd_lightning.report.curves import draw_curves

__all__ = ["Cost", "Row", "as_json", "as_table", "cost", "draw_curves"]
