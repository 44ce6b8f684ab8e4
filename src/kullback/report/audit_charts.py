"""The pictures of an audit: how hard a token is pushed; errors and noise on a logarithmic scale.

Which to use: `pushes` for the curve, `strips` for rows of dots. Colours are the page's classes.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from .charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Frame, below, grid, svg, ticks
from .markup import esc

__all__ = ["Strip", "pushes", "strips"]

REACH, HIGH = 6.0, 6.0  # nats either way that are drawn
_ROW, _NAMES = 24, 148


def pushes(response: Sequence[tuple[float, float]]) -> str:
    """Draw how hard a token is pushed against log policy/ref, beside what the two KLs would do.

    response: pairs as in `Audit.response`. The curves of KL(policy‖ref), log policy/ref itself, and
    of KL(ref‖policy), 1 − ref/policy, are dashed; the loss is scaled to their slope, 1, at 0 (where
    it has none, its largest push within one nat to 1). Where it does not push at all, the axis is
    thick.

    >>> pushes([(-1.0, -1.0), (0.0, 0.0), (1.0, 1.0)]).count("<path") > 3
    True
    """
    inside = [(x, y) for x, y in response if abs(x) <= REACH and math.isfinite(y)]
    about = dict(inside)
    slope = (about.get(0.2, 0.0) - about.get(-0.2, 0.0)) / 0.4
    size = slope or max((abs(y) for x, y in inside if abs(x) <= 1.0), default=0.0) or 1.0
    frame = Frame((-REACH, REACH), (-HIGH, HIGH))
    xs = [-REACH + REACH * i / 60 for i in range(121)]
    shapes = {
        "guide b": [(x, x) for x in xs],
        "guide c": [(x, 1 - math.exp(-x)) for x in xs],
        "line a": [(x, y / size) for x, y in inside],
    }
    drawn = "".join(_path(points, frame, style) for style, points in shapes.items())
    still = "".join(
        f"M{frame.across(x):.1f} {frame.up(0):.1f}H{frame.across(later):.1f}"
        for (x, y), (later, z) in itertools.pairwise(inside)
        if y == z == 0.0
    )
    numbers = "".join(
        f'<text x="{frame.across(t):.1f}" y="{HEIGHT - BOTTOM + 17}" class="mid">{t:g}</text>'
        for t in ticks(-REACH, REACH)
    )
    box = (
        f'<clipPath id="clip-push"><rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT}" '
        f'height="{HEIGHT - TOP - BOTTOM}"/></clipPath>'
    )
    return svg(
        "push on a token against log policy/ref",
        grid(frame, "push down")
        + f'{box}<g clip-path="url(#clip-push)">{drawn}<path class="still" d="{still}"/></g>'
        + numbers
        + below("log policy/ref of the token, nats"),
    )


@dataclass(frozen=True, slots=True)
class Strip:
    """One row of dots: a name and pairs of a value and a style, a class of the page.

    >>> Strip("KL(policy‖ref)", [(1e-16, "a")]).name
    'KL(policy‖ref)'
    """

    name: str
    dots: Sequence[tuple[float, str]]


def strips(rows: Sequence[Strip], *, low: float, high: float, label: str, unit: str) -> str:
    """Draw rows of dots on a logarithmic scale from `low` to `high`; what lies beyond sits on it.

    >>> strips([Strip("k2", [(0.1, "a")])], low=1e-3, high=1, label="l", unit="u").count("h0")
    1
    """
    first, last = math.log10(low), math.log10(high)
    height = TOP + _ROW * len(rows) + BOTTOM

    def across(value: float) -> float:
        place = math.log10(value) if value > 0 else first
        return _NAMES + (min(max(place, first), last) - first) / (last - first) * (
            WIDTH - _NAMES - RIGHT
        )

    parts = []
    step = max(1, round((last - first) / 5))
    for power in range(math.ceil(first), math.floor(last) + 1, step):
        x = across(10.0**power)
        parts.append(f'<path class="rule" d="M{x:.1f} {TOP - 8}V{height - BOTTOM}"/>')
        name = f"{10**power:g}" if -3 < power < 4 else f"1e{power}"
        parts.append(f'<text x="{x:.1f}" y="{height - BOTTOM + 17}" class="mid">{name}</text>')
    for at, row in enumerate(rows):
        y = TOP + _ROW * (at + 0.35)
        parts.append(f'<text x="{_NAMES - 12}" y="{y + 4:.1f}" class="end">{esc(row.name)}</text>')
        styles = dict.fromkeys(style for _, style in row.dots)
        for lane, style in enumerate(styles):
            up = y + 6 * (lane - (len(styles) - 1) / 2)
            d = "".join(f"M{across(v):.1f} {up:.1f}h0" for v, s in row.dots if s == style)
            parts.append(f'<path class="dots {style}" d="{d}"/>')
    middle = (WIDTH + _NAMES - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{height - 5}" class="mid">{esc(unit)}</text>')
    return (
        f'<svg class="strips" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{esc(label)}">{"".join(parts)}</svg>'
    )


def _path(points: Sequence[tuple[float, float]], frame: Frame, style: str) -> str:
    """Draw a curve; far outside the frame it is cut, so that coordinates stay small."""
    near = [(x, max(-4 * HIGH, min(4 * HIGH, y))) for x, y in points]
    d = "M" + "L".join(f"{frame.across(x):.1f} {frame.up(y):.1f}" for x, y in near)
    return f'<path class="{style}" d="{d}"/>' if near else ""
