"""Figures as SVG: one style for pictures of the command, of reports and of the documentation.

Which to use: `card` and `save` for a picture in a script or a page of the documentation;
`figure_of` and `svg_of` where the SVG text itself is wanted; `page_figure` and `inline_svg` for a
chart inside an HTML page, which follows the page's light or dark colours. Text stays text, no date
is written, and the same figure gives the same bytes. The colours are Okabe and Ito's, told apart by
colour-blind readers too. matplotlib is imported only when a figure is made.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

__all__ = [
    "BLUE",
    "FAINT",
    "GREEN",
    "GREY",
    "INK",
    "MIST",
    "ORANGE",
    "PAGE_COLORS",
    "PINK",
    "PURPLE",
    "SAND",
    "SKY",
    "card",
    "figure_of",
    "inline_svg",
    "page_figure",
    "round_ticks",
    "save",
    "svg_of",
]

BLUE, ORANGE, GREEN, PURPLE, PINK = "#0072b2", "#d55e00", "#009e73", "#8a4f9e", "#cc79a7"
INK, FAINT, GREY = "#222222", "#888888", "#767676"
SKY, SAND, MIST = "#b3d5e8", "#f3cfb2", "#d9d9d9"  # pale, to fill areas

_SVG: Any = {"svg.hashsalt": "kullback", "svg.fonttype": "none"}
_STYLE: Any = {
    **_SVG,
    "text.parse_math": False,  # a "$" in a name is a dollar
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
    """Write the figure as SVG text, inside the block that opened it.

    Args:
        figure: A matplotlib figure, as from `figure_of`.

    Returns:
        The SVG document; the same figure gives the same text.

    Example:
        >>> with figure_of(2, 1) as figure:
        ...     "<svg" in svg_of(figure)
        True
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": "kullback"})
    return out.getvalue()


# Colours of a chart on a page, by the page's names: each is written as `var(--name)`, and the style
# sheet says what that is on a light page, on a dark one and on paper.
PAGE_COLORS = {
    "a": "#23708f",
    "b": "#b4641b",
    "off": "#c3c4c4",
    "soft": "#5d646d",
    "line": "#e2dfd8",
}
_ON_PAGE: Any = {
    **_SVG,
    "text.parse_math": False,  # a "$" in a name is a dollar
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.facecolor": "none",
    "axes.edgecolor": PAGE_COLORS["line"],
    "axes.labelcolor": PAGE_COLORS["soft"],
    "axes.titlecolor": PAGE_COLORS["soft"],
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.spines.bottom": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": PAGE_COLORS["line"],
    "text.color": PAGE_COLORS["soft"],
    "xtick.color": PAGE_COLORS["soft"],
    "ytick.color": PAGE_COLORS["soft"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
    "lines.scale_dashes": False,
}
_POINTS_PER_INCH = 72  # of the SVG's own unit
_AUTOMATIC = re.compile(r"[A-Za-z0-9.]+_\d+")  # matplotlib's names of groups: "line2d_7"
_NUMBER = re.compile(r"-?\d+\.\d+")


@contextmanager
def page_figure(width: float = 380, height: float = 270) -> Iterator[Any]:
    """Open a matplotlib figure in the style of the HTML pages, to be written by `inline_svg`.

    Args:
        width: In the SVG's units, about a pixel.
        height: In the same units.

    Yields:
        The figure, without background. Colour what is drawn with `PAGE_COLORS`.

    Example:
        >>> with page_figure() as figure:
        ...     inline_svg(figure, label="nothing")[:33]
        '<svg viewBox="0 0 380 270" role="'
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_ON_PAGE):
        size = (width / _POINTS_PER_INCH, height / _POINTS_PER_INCH)
        figure = Figure(figsize=size, layout="constrained", frameon=False)
        FigureCanvasSVG(figure)
        yield figure


def inline_svg(figure: Any, *, label: str) -> str:
    """Write the figure as an `<svg>` element for an HTML page, inside the block that opened it.

    Fonts and the colours in `PAGE_COLORS` come from the page's style sheet; there is no name space,
    no metadata and no outer size. A name given to an artist with `set_gid` becomes its `<title>`,
    which browsers show under the pointer and screen readers read.

    Args:
        figure: A matplotlib figure, as from `page_figure`.
        label: What the chart shows, for readers who cannot see it.

    Returns:
        Markup; every text in it is escaped.

    Example:
        >>> with page_figure() as figure:
        ...     _ = figure.subplots().plot([1, 2], gid="ELBO")
        ...     "<title>ELBO</title>" in inline_svg(figure, label="ELBO against steps")
        True
    """
    root = Xml.fromstring(svg_of(figure))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.text, element.tail = (element.text or "").strip(), None
        given = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        element.attrib = {key: _on_page(key, value) for key, value in given.items()}
        if element.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
    for group in list(root.iter("g"))[::-1]:  # the inner ones first
        for child in [one for one in group if one.tag == "g" and not len(one)]:
            group.remove(child)
        name = group.attrib.pop("id", "")
        if name and not _AUTOMATIC.fullmatch(name):
            title = Xml.Element("title")
            title.text = name
            group.insert(0, title)
        _share_style(group)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    return Xml.tostring(root, encoding="unicode")


def _on_page(key: str, value: str) -> str:
    """Round numbers to two decimals; leave fonts and colours to the page's style sheet."""
    if key == "style":
        value = re.sub(r"font-family: [^;]*; ", "", value)
        for name, color in PAGE_COLORS.items():
            value = value.replace(color, f"var(--{name})")
    if key == "href":
        return value
    return _NUMBER.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value)


def _share_style(group: Xml.Element) -> None:
    """Write the style that all markers of a group have once, on the group."""
    markers = [child for child in group if child.tag == "use"]
    if len({marker.get("style") for marker in markers}) == 1 and len(markers) > 1:
        group.set("style", markers[0].attrib["style"])
        for marker in markers:
            del marker.attrib["style"]


def round_ticks(axis: Any, *, about: int = 5) -> None:
    """Put about so many ticks on a matplotlib axis, 1, 2 or 5 times a power of ten apart.

    Args:
        axis: `axes.xaxis` or `axes.yaxis`.
        about: How many steps between ticks, at most two more.

    Example:
        >>> with page_figure() as figure:
        ...     panel = figure.subplots()
        ...     _ = panel.set_xlim(0, 500)
        ...     round_ticks(panel.xaxis)
        ...     panel.get_xticks().tolist()
        [0.0, 100.0, 200.0, 300.0, 400.0, 500.0]
    """
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axis.set_major_locator(MaxNLocator(nbins=about + 2, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
