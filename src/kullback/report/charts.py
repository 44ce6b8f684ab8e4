"""Charts as inline SVG that takes its colours from the page, so it is right in light and dark.

Which to use: `lines` for curves against steps, `bars` for sorted figures, `scatter` for points on
a plane. Colours are classes (`a`, `b`, …) of the page's style sheet; text is real text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .markup import esc

__all__ = ["Frame", "Series", "bars", "below", "grid", "lines", "scatter", "svg", "ticks"]

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
