"""Floor 5, report: what a run is worth, as one HTML page, as pictures, and as a terminal table.

Which to use: `write` for `report.html`; `pictures.grid`, `pictures.pairs` and `pictures.save` for
a PNG of samples or reconstructions; `evaluation_text.evaluation_table` for the figures as text;
`audit_report` for the audit of a loss.
"""

from . import audit_report, evaluation_text, pictures
from .run_page import write

__all__ = ["audit_report", "evaluation_text", "pictures", "write"]
