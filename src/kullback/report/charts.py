"""Small pieces of HTML: escaped text, tables, pictures as data URIs within a budget of bytes.

Which to use: `esc` for every text that is not written here; `picture` for anything Pillow holds.

Charts as inline SVG that takes its colours from the page, so it is right in light and dark.

Which to use: `lines` for curves against steps, `bars` for sorted figures, `scatter` for points on
a plane. Colours are classes (`a`, `b`, …) of the page's style sheet; text is real text.
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
import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "Frame",
    "Series",
    "bars",
    "below",
    "document",
    "esc",
    "figure",
    "grid",
    "lines",
    "picture",
    "prose",
    "scatter",
    "section",
    "shrunk",
    "svg",
    "table",
    "ticks",
]

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


WIDTH, HEIGHT = 380, 270
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 30, 40
POINTS = 400  # of a curve that are drawn


@dataclass(frozen=True, slots=True)
class Series:
    """One curve: `values` at `steps`, with one standard error each or none; `style` is a class.

    >>> Series("train", [0, 100], [-400.0, -250.0]).style
    'a'
    """

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    errors: Sequence[float] | None = None
    style: str = "a"


@dataclass(frozen=True, slots=True)
class Frame:
    """From data to places on the paper."""

    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, value: float) -> float:
        """Return the place of a value on the horizontal axis."""
        low, high = self.x
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def up(self, value: float) -> float:
        """Return the place of a value on the vertical axis."""
        low, high = self.y
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Return round numbers between two, about so many: steps of 1, 2 or 5 times a power of ten.

    >>> ticks(0, 520)
    [0, 100, 200, 300, 400, 500]
    >>> ticks(-0.3, 0.31, about=3)
    [-0.2, 0.0, 0.2]
    """
    if not (math.isfinite(low) and math.isfinite(high) and high > low):
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((power, 2 * power, 5 * power, 10 * power), key=lambda s: abs(math.log(s / rough)))
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    found = [round(i * step, places) + 0.0 for i in range(first, last + 1)]
    return [int(t) for t in found] if places == 0 else found


def lines(
    series: Sequence[Series],
    *,
    label: str,
    above: Sequence[tuple[float, str]] = (),
    unit: str = "nats",
) -> str:
    """Draw curves against steps; `above` are marks for a second scale: (step, text).

    With ten readings or more the vertical axis follows those after the first tenth, and what lies
    beyond it is cut off: the steep beginning would hide everything else. Values that are not
    finite are left out. label: what the chart shows, for readers who cannot see it.

    >>> chart = lines([Series("train", [1, 2], [-9.0, -8.0])], label="ELBO against steps")
    >>> chart.startswith('<svg viewBox="0 0 380 270" role="img" aria-label="ELBO against steps">')
    True
    >>> lines([Series("train", [1], [float("nan")])], label="nothing to draw")
    ''
    """
    shown = [_thinned(one) for one in series]
    shown = [one for one in shown if one.values]
    if not shown:
        return ""
    frame = Frame((0.0, max(one.steps[-1] for one in shown) or 1.0), _vertical(shown))
    marks = "".join(_curve(one, frame) for one in shown)
    bottom = "".join(
        f'<text x="{frame.across(t):.1f}" y="{HEIGHT - BOTTOM + 17}" class="mid">{t:,}</text>'
        for t in ticks(*frame.x)
    )
    top = "".join(
        f'<text x="{frame.across(step):.1f}" y="{TOP - 9}" class="mid faint">{esc(text)}</text>'
        f'<path class="rule" d="M{frame.across(step):.1f} {TOP - 4}v4"/>'
        for step, text in above
    )
    box = f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT}" height="{HEIGHT - TOP - BOTTOM}"/>'
    name = "clip-" + "".join(c for c in label if c.isalnum())
    clip = f'<clipPath id="{name}">{box}</clipPath><g clip-path="url(#{name})">{marks}</g>'
    return svg(label, grid(frame, unit) + clip + bottom + top + below("steps"))


def bars(values: Sequence[float], *, active: int, label: str, of: int, unit: str = "nats") -> str:
    """Draw sorted figures as bars, the first `active` in colour; a dashed line ends those.

    values: the largest of `of` figures, in falling order.

    >>> bars([2.0, 0.001], active=1, label="KL", of=2).count("<rect")
    2
    """
    top = max([*values, 1e-9])
    frame = Frame((0.0, float(len(values))), (0.0, 1.04 * top))
    wide = (WIDTH - LEFT - RIGHT) / len(values)
    drawn = []
    for rank, value in enumerate(values):
        height = max(0.6, frame.up(0) - frame.up(value))
        style, left = "a" if rank < active else "off", frame.across(rank) + 0.1 * wide
        drawn.append(
            f'<rect class="bar {style}" x="{left:.2f}" '
            f'y="{frame.up(0) - height:.2f}" width="{0.8 * wide:.2f}" height="{height:.2f}">'
            f"<title>rank {rank + 1}: {value:.4g} {esc(unit)}</title></rect>"
        )
    edge = frame.across(min(active, len(values)))
    side, anchor = (edge - 6, "end") if active > len(values) / 2 else (edge + 6, "start")
    said = f"{active:,} of {of:,} active"
    mark = (
        f'<path class="mark" d="M{edge:.1f} {TOP - 12}V{HEIGHT - BOTTOM}"/>'
        f'<text x="{side:.1f}" y="{TOP - 3}" class="{anchor}">{said}</text>'
    )
    numbers = "".join(
        f'<text x="{frame.across(t - 0.5):.1f}" y="{HEIGHT - BOTTOM + 17}" class="mid">{t}</text>'
        for t in [1, *(t for t in ticks(0, len(values)) if t > 1 and t == int(t))]
    )
    return svg(
        label,
        grid(frame, unit) + "".join(drawn) + mark + numbers + below("latent dimensions, sorted"),
    )


def scatter(
    places: Sequence[tuple[float, float]], *, reach: float, label: str, names: tuple[str, str]
) -> str:
    """Draw points on a plane that goes from −reach to reach on both axes; others are left out.

    >>> scatter([(0, 0), (9, 9)], reach=3, label="codes", names=("first", "second")).count("h0")
    1
    """
    frame = Frame((-reach, reach), (-reach, reach))
    dots = "".join(
        f"M{frame.across(x):.1f} {frame.up(y):.1f}h0"
        for x, y in places
        if abs(x) <= reach and abs(y) <= reach
    )
    numbers = "".join(
        f'<text x="{frame.across(t):.1f}" y="{HEIGHT - BOTTOM + 17}" class="mid">{t:g}</text>'
        for t in ticks(-reach, reach)
    )
    return svg(
        label,
        grid(frame, names[1]) + f'<path class="dots a" d="{dots}"/>' + numbers + below(names[0]),
    )


def _vertical(series: Sequence[Series]) -> tuple[float, float]:
    """Choose the vertical range."""
    values = []
    for one in series:
        skipped = len(one.values) // 10
        errors = one.errors or [0.0] * len(one.values)
        for value, error in list(zip(one.values, errors, strict=True))[skipped:]:
            values += [value - error, value + error]
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _thinned(one: Series) -> Series:
    """Leave out what is not finite, then every so many points, never the last."""
    errors = one.errors or [0.0] * len(one.values)
    rows = list(zip(one.steps, one.values, errors, strict=True))
    rows = [row for row in rows if all(math.isfinite(number) for number in row)]
    stride = max(1, math.ceil(len(rows) / POINTS))
    rows = rows[::-1][::stride][::-1]
    steps, values, kept = ([row[i] for row in rows] for i in range(3))
    return Series(one.name, steps, values, kept if one.errors else None, one.style)


def _curve(one: Series, frame: Frame) -> str:
    points = [(frame.across(x), frame.up(y)) for x, y in zip(one.steps, one.values, strict=True)]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    drawn = f'<path class="line {one.style}" d="{path}"/>'
    if one.errors:
        whiskers = "".join(
            f"M{frame.across(x):.1f} {frame.up(y - e):.1f}V{frame.up(y + e):.1f}"
            for x, y, e in zip(one.steps, one.values, one.errors, strict=True)
        )
        drawn = f'<path class="whisker {one.style}" d="{whiskers}"/>' + drawn
    if len(points) < 30:
        dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
        drawn += f'<path class="knots {one.style}" d="{dots}"/>'
    return drawn


def grid(frame: Frame, unit: str) -> str:
    """Draw the horizontal rules with their numbers, and the unit above them."""
    found = ticks(*frame.y)
    drawn = "".join(
        f'<path class="rule" d="M{LEFT} {frame.up(t):.1f}H{WIDTH - RIGHT}"/>'
        f'<text x="{LEFT - 7}" y="{frame.up(t) + 4:.1f}" class="end">{t:,}</text>'
        for t in found
    )
    return drawn + f'<text x="2" y="{TOP - 9}" class="start faint">{esc(unit)}</text>'


def below(text: str) -> str:
    """Name the horizontal axis."""
    middle = (WIDTH + LEFT - RIGHT) / 2
    return f'<text x="{middle}" y="{HEIGHT - 5}" class="mid">{esc(text)}</text>'


def svg(label: str, content: str) -> str:
    """Wrap a drawing; label says what it shows to readers who cannot see it."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{esc(label)}">{content}</svg>'
    )
