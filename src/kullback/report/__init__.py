"""Floor 5, report: what a run is worth, as one HTML page, as pictures, and as a terminal table.

Which to use: `write` for `report.html`; `pictures.grid`, `pictures.pairs` and `pictures.save` for
a PNG of samples or reconstructions; `terminal.evaluation_table` for the figures as text.
"""

from . import pictures, terminal
from .page import write

__all__ = ["pictures", "terminal", "write"]
