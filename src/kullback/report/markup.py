"""Small pieces of HTML: escaped text, tables, pictures as data URIs within a budget of bytes.

Which to use: `esc` for every text that is not written here; `picture` for anything Pillow holds.
"""

import base64
import html
import io
import re
from collections.abc import Iterable
from importlib import resources
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["document", "esc", "figure", "picture", "prose", "section", "shrunk", "table"]

CRISP = 320  # pixels: narrower pictures are shown enlarged, with their pixels as squares
_QUALITIES = (90, 75, 60, 40)


def esc(text: object) -> str:
    """Escape a text for HTML, quotes included; what UTF-8 cannot hold is written as escapes.

    >>> esc('<b>"&')
    '&lt;b&gt;&quot;&amp;'
    """
    return html.escape(str(text).encode("utf-8", "backslashreplace").decode(), quote=True)


def prose(text: object) -> str:
    """Escape a text and set the K of every L_K as a subscript.

    >>> prose("L_500 > ELBO")
    'L<sub>500</sub> &gt; ELBO'
    """
    return re.sub(r"\bL_(\w+)", r"L<sub>\1</sub>", esc(text))


def table(rows: Iterable[tuple[str, object]]) -> str:
    """Write a two-column table of names and values, both escaped.

    >>> table([("seed", 0)])
    '<table><tr><th scope="row">seed</th><td>0</td></tr></table>'
    """
    cells = (f'<tr><th scope="row">{esc(a)}</th><td>{esc(b)}</td></tr>' for a, b in rows)
    return f"<table>{''.join(cells)}</table>"


def figure(content: str, title: str, caption: str) -> str:
    """Wrap markup with a title above and a caption below; `title` and `caption` are markup too."""
    head = f"<h3>{title}</h3>" if title else ""
    return f"<figure>{head}{content}<figcaption>{caption}</figcaption></figure>"


def shrunk(levels: Tensor, *, limit: int) -> Tensor:
    """Shrink images `[N, H, W, C]` (uint8) by area until no side is longer than `limit`.

    >>> shrunk(torch.zeros(2, 8, 4, 1, dtype=torch.uint8), limit=4).shape
    torch.Size([2, 4, 2, 1])
    """
    height, width = levels.shape[1:3]
    if max(height, width) <= limit:
        return levels
    factor = limit / max(height, width)
    size = max(1, round(height * factor)), max(1, round(width * factor))
    planes = levels.permute(0, 3, 1, 2).float()
    small = torch.nn.functional.interpolate(planes, size=size, mode="area")
    return small.round().to(torch.uint8).permute(0, 2, 3, 1)


def section(name: str, heading: str, content: str) -> str:
    """Wrap markup as a section of a page under a heading; nothing where there is no content.

    >>> section("figures", "The figures", "")
    ''
    """
    if not content:
        return ""
    return f'<section id="{name}"><h2>{heading}</h2>\n{content}</section>\n'


def document(title: str, header: str, sections: Iterable[str]) -> str:
    """Return a whole page in the house's style; title, header and sections are markup.

    >>> document("run", "<h1>run</h1>", []).startswith("<!doctype html>")
    True
    """
    style = resources.files("kullback.report").joinpath("style.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<link rel="icon" href="data:,"><title>{title} · kullback</title>'
        f"<style>\n{style}</style></head>\n<body><main>\n"
        f"<header>{header}</header>\n{''.join(sections)}</main></body></html>\n"
    )


def picture(image: "Image", alt: str, *, budget: int) -> str:
    """Write a picture as an inline `<img>` of at most `budget` bytes before base64.

    A lossless PNG where that fits; else WebP of falling quality, and at last of falling size.
    """
    content, mime = _png(image), "png"
    size = image.size
    while len(content) > budget:
        for quality in _QUALITIES:
            content, mime = _webp(image, quality), "webp"
            if len(content) <= budget or len(content) > 4 * budget:  # far off: smaller, not worse
                break
        if len(content) > budget:
            image = image.resize((max(1, image.width // 2), max(1, image.height // 2)))
    data = base64.b64encode(content).decode()
    crisp = ' class="crisp"' if size[0] <= CRISP else ""
    return (
        f'<img{crisp} alt="{esc(alt)}" width="{size[0]}" height="{size[1]}" '
        f'src="data:image/{mime};base64,{data}">'
    )


def _png(image: "Image") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _webp(image: "Image", quality: int) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGBA").save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()
