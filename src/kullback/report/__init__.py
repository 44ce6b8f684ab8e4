"""Layer 5, report: what was found, as HTML pages, pictures and text.

- `training_runs`: `write`, the page of a run directory, with its charts; `export`: a run as a
  folder to publish, with ONNX graphs and a model card.
- `audit_page`: the audit of a loss as text and as a page.
- `language_models`: drift of language models, and logged log-probabilities, as text and as a page.
- `html`: pages from `templates/`; `figures`: the one style of all charts, drawn by matplotlib.
- `pictures`: images as PNG, clips of sound as WAV files, players and spectrograms;
  `divergence_plot`, `fit_plot`: SVG of a divergence, of a fit.
- `explain_tables`, `explain_named`, `explain_fit`: what `--explain` prints.
- `evaluation_text`: what `kullback evaluate` prints; `text_layout`: numbers and columns of text.
- `limits`: every threshold.

Everything loads on first use.
"""

from typing import TYPE_CHECKING

from kullback.core import lazy

if TYPE_CHECKING:
    from . import (
        audit_page,
        evaluation_text,
        explain_fit,
        explain_named,
        explain_tables,
        pictures,
    )
    from .divergence_plot import plot
    from .fit_plot import plot_calibration, plot_directions, plot_fit
    from .language_models.drift_page import drift_text, write_drift
    from .language_models.logprobs_page import logprobs_text, write_logprobs
    from .text_layout import UNITS, aligned, measured_text, number
    from .training_runs.model_card import export
    from .training_runs.run_page import write

__all__ = [
    "UNITS",
    "aligned",
    "audit_page",
    "drift_text",
    "evaluation_text",
    "explain_fit",
    "explain_named",
    "explain_tables",
    "export",
    "logprobs_text",
    "measured_text",
    "number",
    "pictures",
    "plot",
    "plot_calibration",
    "plot_directions",
    "plot_fit",
    "write",
    "write_drift",
    "write_logprobs",
]

_MODULES = {
    "UNITS": "text_layout",
    "aligned": "text_layout",
    "audit_page": "audit_page",
    "drift_text": "language_models.drift_page",
    "evaluation_text": "evaluation_text",
    "explain_fit": "explain_fit",
    "explain_named": "explain_named",
    "explain_tables": "explain_tables",
    "export": "training_runs.model_card",
    "logprobs_text": "language_models.logprobs_page",
    "measured_text": "text_layout",
    "number": "text_layout",
    "pictures": "pictures",
    "plot": "divergence_plot",
    "plot_calibration": "fit_plot",
    "plot_directions": "fit_plot",
    "plot_fit": "fit_plot",
    "write": "training_runs.run_page",
    "write_drift": "language_models.drift_page",
    "write_logprobs": "language_models.logprobs_page",
}

__getattr__, __dir__ = lazy(
    "kullback.report", {name: f"kullback.report.{module}" for name, module in _MODULES.items()}
)
