"""The charts of a run's page: learning curve, KL of every latent dimension, codes on a plane.

Which to use: `learning_curve` for curves against steps, `kl_bars` for sorted figures,
`latent_scatter` for points on a plane; each returns an `<svg>` element for a page. The plane is
that of the two directions in which the codes of the data vary most: `codes` for q(z|x) of many
images, `plane` for the directions, `nearest` for the map of images on it, `traversal` for what the
decoder makes of its points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kullback.core import require
from kullback.vae import VAE

from ..figures import PAGE_COLORS, inline_svg, page_figure, round_ticks
from ..limits import CURVE_POINTS, DOTTED_POINTS, LATENT_REACH, NO_VARIANCE

__all__ = [
    "Plane",
    "Series",
    "codes",
    "kl_bars",
    "latent_scatter",
    "lattice",
    "learning_curve",
    "nearest",
    "plane",
    "traversal",
]

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
        _axes(axis, names[0], names[1])
        return inline_svg(figure, label=label)


def _axes(axis: Any, below: str, above: str) -> None:
    """Put round numbers on both axes; name the horizontal one, and the unit above."""
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


_VALUES = 1_000_000  # of images through a network at once


@dataclass(frozen=True, slots=True)
class Plane:
    """The plane of the two leading principal directions of the mean codes (one when latent is 1).

    origin `[latent]`: their mean. directions `[k, latent]`, k ≤ 2: orthonormal, each with its
    largest entry positive. deviation `[k]`: standard deviation of the codes along each. share
    `[k]`: of their total variance. places `[n, k]`: the codes, in standard deviations.
    """

    origin: Tensor
    directions: Tensor
    deviation: Tensor
    share: Tensor
    places: Tensor


@torch.no_grad()
def codes(model: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and log standard deviation of q(z|x), `[n, latent]` each, a few images at once.

    >>> from kullback.vae import build
    >>> codes(build((4,), "binary"), torch.ones(3, 4))[0].shape
    torch.Size([3, 32])
    """
    parts = [model.encode(model.check(rows)) for rows in torch.split(x, _rows(x))]
    return torch.cat([mean for mean, _ in parts]), torch.cat([log_sd for _, log_sd in parts])


def plane(means: Tensor) -> Plane | None:
    """Find the plane of mean codes `[n, latent]`, n ≥ 2, by principal components in float64.

    None when the codes do not vary (a collapsed posterior): there is no direction to show.

    >>> found = plane(torch.tensor([[0.0, 3.0], [0.1, -3.0], [-0.1, 0.0]]))
    >>> found.directions[0].round().abs()
    tensor([0., 1.], dtype=torch.float64)
    """
    require(len(means) >= 2, "means", "at least 2 codes", len(means))
    values = means.detach().cpu().double()
    origin = values.mean(0)
    centred = values - origin
    variance, vectors = torch.linalg.eigh(centred.T @ centred / (len(values) - 1))
    kept = min(2, values.shape[1])
    variance, directions = variance.flip(0).clamp(min=0.0), vectors.flip(1).T[:kept]
    if not float(variance[0]) > NO_VARIANCE:
        return None
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * largest.sign()
    deviation = variance[:kept].sqrt().clamp(min=1e-6)
    places = centred @ directions.T / deviation
    return Plane(origin, directions, deviation, variance[:kept] / variance.sum(), places)


def lattice(columns: int, rows: int) -> Tensor:
    """Return the centres of a lattice over the map, `[rows·columns, 2]`, in standard deviations.

    Row by row from the top left; across is the first direction, up the second.

    >>> lattice(2, 1).tolist()
    [[-1.25, 0.0], [1.25, 0.0]]
    """
    across = (torch.arange(columns, dtype=torch.float64) + 0.5) * (
        2 * LATENT_REACH / columns
    ) - LATENT_REACH
    up = LATENT_REACH - (torch.arange(rows, dtype=torch.float64) + 0.5) * (2 * LATENT_REACH / rows)
    return torch.stack([across.repeat(rows), up.repeat_interleave(columns)], 1)


def nearest(places: Tensor, *, columns: int, rows: int) -> Tensor:
    """Pick for every cell of the lattice the code nearest its centre among those inside the cell.

    places: `[n, k]` as in `Plane`. Returns indices `[rows·columns]`, −1 for an empty cell; no code
    is picked twice, so nothing overlaps.

    >>> nearest(torch.tensor([[-1.0, 0.0], [-1.2, 0.0]]), columns=2, rows=1).tolist()
    [1, -1]
    """
    across = places[:, 0].double()
    up = places[:, 1].double() if places.shape[1] > 1 else torch.zeros_like(across)
    column = torch.floor((across + LATENT_REACH) * (columns / (2 * LATENT_REACH))).long()
    row = torch.floor((LATENT_REACH - up) * (rows / (2 * LATENT_REACH))).long()
    inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    centres = lattice(columns, rows)
    picked = torch.full((rows * columns,), -1)
    best = [math.inf] * (rows * columns)
    for index in inside.nonzero().flatten().tolist():
        cell = int(row[index]) * columns + int(column[index])
        far = math.hypot(*(torch.stack([across[index], up[index]]) - centres[cell]).tolist())
        if far < best[cell]:
            best[cell], picked[cell] = far, index
    return picked


@torch.no_grad()
def traversal(model: VAE, found: Plane, *, columns: int, rows: int) -> Tensor:
    """Decode the centres of a lattice on the plane: the expected x, `[rows·columns, *event]`."""
    steps = lattice(columns, rows)[:, : len(found.deviation)] * found.deviation
    z = (found.origin + steps @ found.directions).float()
    first = model.decode(z[:1])
    rest = [model.decode(part) for part in torch.split(z[1:], _rows(first)) if len(part)]
    return torch.cat([first, *rest])


def _rows(x: Tensor) -> int:
    """Return how many images like those of x `[n, *event]` to take at once."""
    return max(1, min(200, _VALUES // max(1, x[0].numel())))
