"""The pages of the docs that run: their code, what it prints, and the pictures it makes.

`python tools/docs_pictures.py` runs the pages and writes their pictures into `docs/img`; a test
runs them too, compares what they print with what they say, and the pictures with those committed.
The pages' code imports `card`, `save` and the colours from here (`PYTHONPATH=tools`).
"""

import contextlib
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("surprise", "estimating_kl", "token_kl")

# Okabe and Ito's colours, told apart by every kind of eye
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#767676"
SKY, SAND, MIST = "#b3d5e8", "#f3cfb2", "#d9d9d9"  # pale, to fill areas

_STYLE = {"svg.hashsalt": "kullback", "svg.fonttype": "none"}
_FENCED = re.compile(r"^```python\n(.*?)^```\n(?:\n*^```text\n(.*?)^```\n)?", re.M | re.S)


def card(*titles: str, height: float = 2.9, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    """Return a figure on a white card, 7.2 inches wide, with one panel a title, side by side."""
    figure = Figure(figsize=(7.2, height), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1, wspace=0.04)
    panels = figure.subplots(1, len(titles), squeeze=False, sharey=share_y)[0]
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, loc="left", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=9)
    return figure, list(panels)


def save(figure: Figure, name: str) -> None:
    """Write the figure as SVG: text as text, no date, and the same names inside every time."""
    with matplotlib.rc_context(_STYLE):
        figure.savefig(name, format="svg", metadata={"Date": None, "Creator": None})


class Block(NamedTuple):
    """A piece of a page's code, the line it starts on, and what the page says it prints."""

    code: str
    line: int
    said: str


def blocks(page: str) -> list[Block]:
    """Return the python blocks of a page, each with the text block that follows it, if any."""
    text = (DOCS / f"{page}.md").read_text()
    return [
        Block(found[1], text.count("\n", 0, found.start(1)) + 1, found[2] or "")
        for found in _FENCED.finditer(text)
    ]


def run(page: str) -> list[tuple[Block, str]]:
    """Run a page from top to bottom in the current folder; return what each block printed."""
    names: dict[str, Any] = {"__name__": page}
    printed = []
    for block in blocks(page):
        source = "\n" * (block.line - 1) + block.code  # so that errors name the page's lines
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(source, f"{page}.md", "exec"), names)
        printed.append((block, out.getvalue()))
    return printed


if __name__ == "__main__":
    with contextlib.chdir(DOCS / "img"):
        for name in PAGES:
            for block, printed in run(name):
                if printed != block.said:
                    print(f"{name}.md:{block.line} prints\n{printed}")
