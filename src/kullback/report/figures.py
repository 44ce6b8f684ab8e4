"""Figures as SVG: one style for pictures of the command, of reports and of the documentation.

Which to use: `card` and `save` for a picture in a script or a page; `figure_of` and `svg_of` where
the SVG text itself is wanted. Text stays text, no date is written, and the same figure gives the
same bytes. The colours are Okabe and Ito's, told apart by colour-blind readers too.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = [
    "BLUE",
    "FAINT",
    "GREEN",
    "GREY",
    "INK",
    "MIST",
    "ORANGE",
    "PINK",
    "PURPLE",
    "SAND",
    "SKY",
    "card",
    "figure_of",
    "save",
    "svg_of",
]

BLUE, ORANGE, GREEN, PURPLE, PINK = "#0072b2", "#d55e00", "#009e73", "#8a4f9e", "#cc79a7"
INK, FAINT, GREY = "#222222", "#888888", "#767676"
SKY, SAND, MIST = "#b3d5e8", "#f3cfb2", "#d9d9d9"  # pale, to fill areas

_SVG: Any = {"svg.hashsalt": "kullback", "svg.fonttype": "none"}
_STYLE: Any = {
    **_SVG,
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def card(*titles: str, height: float = 2.9, share_y: bool = False) -> tuple[Any, list[Any]]:
    """Return a white figure, 7.2 inches wide, with one panel a title, side by side.

    Args:
        *titles: The title of each panel.
        height: Inches.
        share_y: Whether the panels have one vertical axis.

    Returns:
        A matplotlib figure and the list of its panels (axes).

    Example:
        >>> figure, (left, right) = card("before", "after")
        >>> left.get_title(loc="left")
        'before'
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, height), layout="constrained", facecolor="white")
    layout: Any = figure.get_layout_engine()
    layout.set(w_pad=0.12, h_pad=0.1, wspace=0.04)
    panels = figure.subplots(1, len(titles), squeeze=False, sharey=share_y)[0]
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, loc="left", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=9)
    return figure, list(panels)


def save(figure: Any, path: str | Path) -> None:
    """Write a figure as an SVG file: text as text, no date, and the same names inside every time.

    Args:
        figure: A matplotlib figure, as from `card`.
        path: The file to write.

    Raises:
        OSError: The file cannot be written.
    """
    import matplotlib

    with matplotlib.rc_context(_SVG):
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


@contextmanager
def figure_of(width: float, height: float) -> Iterator[Any]:
    """Open a matplotlib figure of so many inches in this project's style, without any display.

    Args:
        width: Inches.
        height: Inches.

    Yields:
        The figure; write it with `svg_of` before the block ends.

    Example:
        >>> with figure_of(2, 1) as figure:
        ...     svg_of(figure).startswith("<?xml")
        True
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        FigureCanvasSVG(figure)
        yield figure


def svg_of(figure: Any) -> str:
    """Write the figure as SVG text, inside the block that opened it."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": "kullback"})
    return out.getvalue()
