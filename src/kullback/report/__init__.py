"""Floor 5, report: what a run is worth, as one HTML page, as pictures, and as a terminal table.

Which to use: `write` for `report.html`; `pictures.grid`, `pictures.pairs` and `pictures.save` for
a PNG of samples or reconstructions; `terminal.evaluation_table` for the figures as text;
`audit_page` and `audit_text` for the audit of a loss.
"""

from . import audit_page, audit_text, pictures, terminal
from .page import write

__all__ = ["audit_page", "audit_text", "pictures", "terminal", "write"]
