"""Figures as SVG text: real text, no date, the same bytes for the same figure, on a white card.

Which to use: `figure_of` opens a figure in the house's style, `svg_of` writes it.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .divergence_plot import STYLE

__all__ = ["figure_of", "svg_of"]


@contextmanager
def figure_of(width: float, height: float) -> Iterator[Any]:
    """Open a matplotlib figure of so many inches in the house's style, without any display.

    >>> with figure_of(2, 1) as figure:
    ...     svg_of(figure).startswith("<?xml")
    True
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        FigureCanvasSVG(figure)
        yield figure


def svg_of(figure: Any) -> str:
    """Write the figure as SVG text, inside the block that opened it."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": "kullback"})
    return out.getvalue()
