"""What came of it: runs examined, compared, and shown."""

from kd_lightning.report.comparison import Comparison, compare
from kd_lightning.report.cost import Cost, cost
from kd_lightning.report.document import as_page
from kd_lightning.report.examined import Examined, Examiner
from kd_lightning.report.profile import Profile, Profiler
from kd_lightning.report.table import for_terminal

__all__ = [
    "Comparison",
    "Cost",
    "Examined",
    "Examiner",
    "Profile",
    "Profiler",
    "as_page",
    "compare",
    "cost",
    "for_terminal",
]
