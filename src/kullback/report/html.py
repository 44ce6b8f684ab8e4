"""HTML pages from the templates in `templates/`, and pictures inside them.

Which to use: `render` fills a template (everything is escaped unless it is markup); `picture` turns
a Pillow image into one of at most so many bytes; `shrunk` makes images smaller before that.
"""

import base64
import functools
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kullback.core import printable

from .limits import CRISP

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup
    from PIL.Image import Image

__all__ = ["Picture", "markup", "picture", "render", "shrunk"]

_QUALITIES = (90, 75, 60, 40)  # of WebP, tried in this order


def render(template: str, **values: Any) -> str:
    """Fill a template of `kullback.report` and return the page.

    Args:
        template: The name of a file in `templates/`.
        **values: What the template shows. Text is escaped; a character that UTF-8 cannot hold is
            written as a backslash escape.

    Returns:
        The page as text that UTF-8 can hold.
    """
    page = _environment().get_template(template).render(**values)
    return printable(page.encode("utf-8", "backslashreplace").decode())


def markup(svg: str) -> "Markup":
    """Mark what `figures.inline_svg` wrote, which has escaped every text, as markup."""
    from markupsafe import Markup

    return Markup(svg)


@functools.cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import escape

    def prose(text: object) -> "Markup":
        """Escape a text and set the K of every L_K as a subscript."""
        return markup(re.sub(r"\bL_(\w+)", r"L<sub>\1</sub>", str(escape(text))))

    environment = Environment(
        loader=PackageLoader("kullback.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["prose"] = prose
    return environment


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as the file that a page holds: its bytes, their format, pixels, what it shows.

    crisp: shown enlarged with its pixels as squares.
    """

    data: bytes
    mime: str
    width: int
    height: int
    alt: str

    @property
    def crisp(self) -> bool:
        """Whether the picture is small enough to be shown with its pixels as squares."""
        return self.width <= CRISP

    @property
    def source(self) -> str:
        """The `src` of an `<img>`: the file in base64."""
        return f"data:image/{self.mime};base64,{base64.b64encode(self.data).decode()}"


def picture(image: "Image", alt: str, *, budget: int) -> Picture:
    """Store a picture in at most `budget` bytes.

    A lossless PNG where that fits; else WebP of falling quality, and at last of falling size.

    Args:
        image: A Pillow image.
        alt: What it shows, for readers who cannot see it.
        budget: Bytes, before base64.

    Returns:
        The stored picture; its width and height are those of `image`.

    Example:
        >>> from PIL import Image
        >>> picture(Image.new("L", (8, 4)), "black", budget=1000).mime
        'png'
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
    return Picture(content, mime, size[0], size[1], alt)


def _png(image: "Image") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _webp(image: "Image", quality: int) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGBA").save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()


def shrunk(levels: Tensor, *, limit: int) -> Tensor:
    """Shrink images by area until no side is longer than `limit` pixels.

    Args:
        levels: `[N, H, W, C]`, uint8.
        limit: Pixels.

    Returns:
        `[N, h, w, C]`, uint8; `levels` itself where nothing is too long.

    Example:
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
