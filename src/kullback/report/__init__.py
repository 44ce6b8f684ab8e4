"""Floor 5, report: what a run is worth, as one HTML page, as pictures, and as a terminal table.

Which to use: `write` for `report.html`; `pictures.grid`, `pictures.pairs` and `pictures.save` for
a PNG of samples or reconstructions; `evaluation_text.evaluation_table` for the figures as text;
`audit_report` for the audit of a loss.
"""

from . import (
    audit_report,
    divergence_plot,
    evaluation_text,
    explain_fit,
    explain_named,
    explain_tables,
    fit_plot,
    pictures,
    text_layout,
)
from .run_page import write

__all__ = [
    "audit_report",
    "divergence_plot",
    "evaluation_text",
    "explain_fit",
    "explain_named",
    "explain_tables",
    "fit_plot",
    "pictures",
    "text_layout",
    "write",
]
