"""The charts of a run's page: learning curve, KL of every latent dimension, codes on a plane.

Which to use: `learning_curve` for curves against steps, `kl_bars` for sorted figures,
`latent_scatter` for points on a plane. Each returns an `<svg>` element for a page.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .figures import PAGE_COLORS, inline_svg, page_figure, round_ticks
from .limits import CURVE_POINTS, DOTTED_POINTS

__all__ = ["Series", "kl_bars", "latent_scatter", "learning_curve"]

_HAIRLINE = 0.003  # of the highest bar: the least height that is drawn


@dataclass(frozen=True, slots=True)
class Series:
    """One curve: `values` at `steps`, with one standard error each or none; `color` on the page.

    Example:
        >>> Series("train", [0, 100], [-400.0, -250.0]).color
        'a'
    """

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    errors: Sequence[float] | None = None
    color: str = "a"


def learning_curve(
    series: Sequence[Series],
    *,
    label: str,
    above: Sequence[tuple[float, str]] = (),
    unit: str = "nats",
) -> str:
    """Draw curves against steps.

    With ten readings or more the vertical axis follows those after the first tenth, and what lies
    beyond it is cut off: the steep beginning would hide everything else. Values that are not
    finite are left out.

    Args:
        series: The curves; errors are drawn as bars of ± one standard error.
        label: What the chart shows, for readers who cannot see it.
        above: Marks for a second scale: (step, text).
        unit: Of the values.

    Returns:
        Markup; the empty text where there is nothing to draw.

    Example:
        >>> chart = learning_curve([Series("train", [1, 2], [-9.0, -8.0])], label="ELBO")
        >>> chart.startswith('<svg viewBox="0 0 380 270" role="img" aria-label="ELBO">')
        True
        >>> learning_curve([Series("train", [1], [float("nan")])], label="nothing to draw")
        ''
    """
    shown = [kept for one in series if (kept := _finite(one)).values]
    if not shown:
        return ""
    with page_figure() as figure:
        axis = figure.subplots()
        for one in shown:
            _curve(axis, one)
        axis.set_xlim(0.0, max(one.steps[-1] for one in shown) or 1.0)
        axis.set_ylim(_vertical(shown))
        if above:
            top = axis.secondary_xaxis("top")
            top.set_xticks([step for step, _ in above], [text for _, text in above])
        _axes(axis, "steps", unit)
        return inline_svg(figure, label=label)


def kl_bars(
    values: Sequence[float], *, active: int, label: str, of: int, unit: str = "nats"
) -> str:
    """Draw sorted figures as bars, the first `active` in colour; a dashed line ends those.

    Args:
        values: The largest of `of` figures, in falling order.
        active: How many of all are active.
        label: What the chart shows, for readers who cannot see it.
        of: How many figures there are.
        unit: Of the values.

    Returns:
        Markup; each bar has its rank and value as title.

    Example:
        >>> kl_bars([2.0, 0.001], active=1, label="KL", of=2).count("<title>rank")
        2
    """
    top = max([*values, 1e-9])
    edge = min(active, len(values)) + 0.5
    with page_figure() as figure:
        axis = figure.subplots()
        for rank, value in enumerate(values, start=1):
            color = PAGE_COLORS["a" if rank <= active else "off"]
            height = max(value, _HAIRLINE * top)
            name = f"rank {rank}: {value:.4g} {unit}"
            axis.bar([rank], [height], width=0.8, color=color)[0].set_gid(name)
        axis.axvline(edge, color=PAGE_COLORS["b"], linewidth=1.3, linestyle=(0, (4, 3)))
        left = active > len(values) / 2
        axis.annotate(
            f"{active:,} of {of:,} active",
            (edge, 1.0),
            xycoords=axis.get_xaxis_transform(),
            xytext=(-6 if left else 6, -2),
            textcoords="offset points",
            ha="right" if left else "left",
            va="top",
        )
        axis.set_xlim(0.4, len(values) + 0.6)
        axis.set_ylim(0.0, 1.15 * top)
        _axes(axis, "latent dimensions, sorted", unit)
        places = [place for place in axis.get_xticks() if 1 < place <= len(values)]
        axis.set_xticks([1, *(place for place in places if place == int(place))])
        return inline_svg(figure, label=label)


def latent_scatter(
    places: Sequence[tuple[float, float]], *, reach: float, label: str, names: tuple[str, str]
) -> str:
    """Draw points on a plane that goes from −reach to reach on both axes; others are left out.

    Args:
        places: The points.
        reach: In the points' unit.
        label: What the chart shows, for readers who cannot see it.
        names: Of the horizontal and the vertical axis.

    Returns:
        Markup.

    Example:
        >>> plane = latent_scatter([(0, 0), (1, 1), (9, 9)], reach=3, label="c", names=("x", "y"))
        >>> plane.count("<use")
        2
    """
    inside = [(x, y) for x, y in places if abs(x) <= reach and abs(y) <= reach]
    with page_figure() as figure:
        axis = figure.subplots()
        dots: dict[str, Any] = {"markersize": 3, "markeredgewidth": 0, "alpha": 0.5}
        across, up = [x for x, _ in inside], [y for _, y in inside]
        axis.plot(across, up, "o", color=PAGE_COLORS["a"], gid="codes", clip_on=False, **dots)
        axis.set_xlim(-reach, reach)
        axis.set_ylim(-reach, reach)
        _axes(axis, *names)
        return inline_svg(figure, label=label)


def _axes(axis: Any, below: str, above: str) -> None:
    """Number both axes with round numbers; name the horizontal one, and the unit above."""
    round_ticks(axis.xaxis)
    round_ticks(axis.yaxis)
    axis.set_xlabel(below)
    axis.set_title(above)


def _vertical(series: Sequence[Series]) -> tuple[float, float]:
    """Choose the vertical range from what comes after the first tenth of each curve."""
    ends = []
    for one in series:
        values = np.asarray(one.values[len(one.values) // 10 :])
        errors = np.asarray(one.errors or [0.0] * len(one.values))[-len(values) :]
        ends += [*(values - errors), *(values + errors)]
    low, high = float(min(ends)), float(max(ends))
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _finite(one: Series) -> Series:
    """Leave out what is not finite, then all but every so many points, never the last."""
    errors = one.errors or [0.0] * len(one.values)
    rows = list(zip(one.steps, one.values, errors, strict=True))
    rows = [row for row in rows if all(math.isfinite(number) for number in row)]
    stride = max(1, math.ceil(len(rows) / CURVE_POINTS))
    rows = rows[::-1][::stride][::-1]
    steps, values, kept = ([row[i] for row in rows] for i in range(3))
    return Series(one.name, steps, values, kept if one.errors else None, one.color)


def _curve(axis: Any, one: Series) -> None:
    color = PAGE_COLORS[one.color]
    if one.errors:
        low, high = (np.add(one.values, sign * np.asarray(one.errors)) for sign in (-1, 1))
        axis.vlines(one.steps, low, high, color=color, linewidth=1.4, alpha=0.45)
    few = len(one.values) < DOTTED_POINTS
    style: dict[str, Any] = {"marker": "o" if few else None, "markersize": 4, "linewidth": 1.8}
    axis.plot(one.steps, one.values, color=color, gid=one.name, **style)
