"""A picture of a divergence: P and Q, its integrand, and how the estimators scatter.

Which to use: `plot`, which returns SVG text. Blue is P, orange Q; where the integrand is positive
it is green, where it is negative purple. Behind it: `profile` evaluates P, Q and the integrand, a
table or a discrete distribution at its outcomes, a density on a grid; `estimators` gives k1, k2, k3
and the best λ (MATH 5) on the same draws.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.distributions import Distribution

from kullback.core import Estimate, require
from kullback.sampled import LogRatios, Support, draw_from, log_density

from .figures import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, figure_of, svg_of
from .limits import LABEL_LETTERS, OUTCOMES, TAIL_REACH
from .text_layout import UNITS, number

__all__ = ["ESTIMATORS", "NAMES", "Profile", "estimators", "plot", "profile"]

POINTS, DRAWS, RARE = 300, 20_000, 1e-3


@dataclass(frozen=True, slots=True)
class Profile:
    """Places x, masses or densities p and q there, the integrand in a unit, and its integral.

    x, p, q, integrand: NumPy float64 `[places]`, which is what a picture takes.

    integrand: +inf where p has mass that q lacks. total: the sum, or the integral, far beyond x,
    by the trapezoid rule: good to the four digits that are shown, not an oracle.
    """

    x: Any
    p: Any
    q: Any
    integrand: Any
    discrete: bool
    total: float


def profile(quantity: str, p: Any, q: Any = None, *, unit: str) -> Profile:
    """Evaluate p, q and the integrand of "entropy", "cross-entropy", "kl" or "js".

    p, q: tables `[outcomes]`, or torch distributions over single numbers.
    Errors: `ArgumentValueError` for distributions over vectors.

    >>> table = torch.tensor([0.5, 0.5])
    >>> profile("entropy", table, unit="bits").integrand
    array([0.5, 0.5])
    """
    given = [d for d in (p, q) if d is not None]
    if isinstance(p, Tensor):
        require(len(p) <= OUTCOMES, "--plot", f"at most {OUTCOMES} outcomes", len(p))
        x = torch.arange(1, len(p) + 1, dtype=torch.float64)
        logs = [d.double().log() for d in given]
        values = _integrand(quantity, logs) / UNITS[unit]
        return _profile(x, logs, values, discrete=True, total=float(values.sum()))
    single = all(not d.event_shape and not d.batch_shape for d in given)
    require(single, "--plot", "distributions over single numbers", "over vectors")
    seeded = torch.Generator().manual_seed(0)
    draws = [draw_from(d, DRAWS, generator=seeded).double().sort().values for d in given]
    discrete = all(bool(d.support.is_discrete) for d in given)
    x = _outcomes(draws) if discrete else _places(draws)
    wide = _beyond(x) if discrete else _everywhere(draws)
    logs, far = ([log_density(d, points).double() for d in given] for points in (x, wide))
    weights = torch.ones_like(wide) if discrete else _widths(wide)
    values, tails = (_integrand(quantity, each) / UNITS[unit] for each in (logs, far))
    total = float((tails * weights).sum())
    return _profile(x, logs, values, discrete=discrete, total=total)


def _profile(
    x: Tensor, logs: list[Tensor], integrand: Tensor, *, discrete: bool, total: float
) -> Profile:
    p, q = logs[0].exp().numpy(), logs[1].exp().numpy() if len(logs) > 1 else None
    return Profile(x.numpy(), p, q, integrand.numpy(), discrete, total)


def _integrand(quantity: str, logs: Sequence[Tensor]) -> Tensor:
    """Return p·log 1/p, p·log 1/q, p·log p/q, or ½p·log p/m + ½q·log q/m, 0 where p is 0."""
    log_p, log_q = logs[0], logs[-1]
    if len(logs) == 1:
        return _times(log_p, -log_p)
    if quantity == "cross-entropy":
        return _times(log_p, -log_q)
    if quantity == "kl":
        return _times(log_p, log_p - log_q)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (_times(log_p, log_p - log_m) + _times(log_q, log_q - log_m)) / 2


def _times(log_p: Tensor, factor: Tensor) -> Tensor:
    return torch.where(log_p == -math.inf, 0.0, log_p.exp() * factor)


def _outcomes(draws: list[Tensor]) -> Tensor:
    """Return every whole number between the least and the greatest draw."""
    low, high = min(float(d[0]) for d in draws), max(float(d[-1]) for d in draws)
    many = f"at most {OUTCOMES} outcomes"
    require(high - low <= OUTCOMES, "--plot", many, f"{high - low:g}")
    return torch.arange(low, high + 1, dtype=torch.float64)


def _beyond(x: Tensor) -> Tensor:
    """Return the whole numbers shown and as many again, at least 50, on either side."""
    room = max(50, len(x))
    return torch.arange(float(x[0]) - room, float(x[-1]) + room + 1, dtype=torch.float64)


def _places(draws: list[Tensor]) -> Tensor:
    """Return where to look at densities: nearly all draws, without the far ends of heavy tails."""
    ends = []
    for drawn in draws:
        levels = torch.tensor([RARE, 0.25, 0.75, 1 - RARE], dtype=torch.float64)
        low, first, third, high = torch.quantile(drawn, levels).tolist()
        reach = TAIL_REACH * (third - first)
        ends.append((max(low, first - reach), min(high, third + reach)))
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    room = 0.04 * (high - low)
    parts = [torch.linspace(*end, POINTS, dtype=torch.float64) for end in ends]
    whole = torch.linspace(low - room, high + room, POINTS, dtype=torch.float64)
    return torch.cat([whole, *parts]).sort().values


def _everywhere(draws: list[Tensor]) -> Tensor:
    """Return where to integrate: at the draws, dense where mass is, and far into the tails."""
    middle, spread = draws[0].median(), draws[0].std().clamp(max=1e6)
    tails = torch.linspace(-14, 14, DRAWS, dtype=torch.float64).sinh()
    return torch.cat([*draws, middle + spread * tails]).sort().values


def _widths(x: Tensor) -> Tensor:
    """Return the trapezoid rule's weights."""
    gaps = x.diff()
    zero = gaps.new_zeros(1)
    return (torch.cat([gaps, zero]) + torch.cat([zero, gaps])) / 2


ESTIMATORS = ("k1", "k2", "k3", "best")
NAMES = {"k1": "k1", "k2": "k2", "k3": "k3", "best": "best λ"}
NUMBERS = 2_000_000  # draws times repeats that are held at a time


def estimators(
    p: Distribution,
    q: Distribution,
    *,
    draws: int,
    repeats: int = 1,
    generator: Generator | None = None,
) -> dict[str, Estimate]:
    """Estimate KL(p‖q) by every estimator on the same draws x ~ p; values `[repeats]`, in nats.

    p, q: of batch shape []. repeats · draws is at most about two million.

    >>> import torch
    >>> p, q = (torch.distributions.Normal(torch.tensor(m), 1.0) for m in (0.0, 0.1))
    >>> found = estimators(p, q, draws=100, generator=torch.Generator().manual_seed(0))
    >>> [*found], found["k3"].value.shape
    (['k1', 'k2', 'k3', 'best'], torch.Size([1]))
    """
    points = draw_from(p.expand((repeats,)), draws, generator=generator)
    log_p = log_density(p, points).double().movedim(0, -1)
    log_q = log_density(q, points).double().movedim(0, -1)
    pieces, support = LogRatios.of(log_p, log_q), Support.of(p.expand((repeats,)), q)
    return {
        name: support.settled(support.chosen(pieces, name, cross_fit=True)) for name in ESTIMATORS
    }


FORMULAS = {
    "entropy": ("H(P)", "p·{log} 1/p"),
    "cross-entropy": ("H(P, Q)", "p·{log} 1/q"),
    "kl": ("KL(P‖Q)", "p·{log} p/q"),
    "js": ("JS(P, Q)", "½p·{log} p/m + ½q·{log} q/m"),
}
BARS, NAMED, REPEATS = 60, 16, 200


def plot(
    quantity: str,
    p: Any,
    q: Any = None,
    *,
    unit: str = "nats",
    labels: Sequence[str] = (),
    names: Sequence[str] = ("P", "Q"),
    drawable: Sequence[Any] | None = None,
    draws: int = 10_000,
    seed: int = 0,
    exact: float | None = None,
) -> str:
    """Draw "entropy", "cross-entropy", "kl" or "js" of tables or distributions as SVG text.

    Args:
        quantity: One of the four names.
        p: A table `[outcomes]`, or a torch distribution over single numbers.
        q: The same for Q; None for the entropy.
        unit: "nats" or "bits".
        labels: Names of a table's outcomes.
        names: What P and Q are called.
        drawable: P and Q as torch distributions, to show k1, k2, k3 and the best λ over 200 repeats
            of `draws` (fewer, where that would be above two million).
        draws: Samples for each estimate.
        seed: Of the samples.
        exact: The value in nats; without it the estimators are compared with the integral of the
            curve.

    Returns:
        The SVG document, the same for the same arguments.

    Raises:
        ArgumentValueError: The distributions are over vectors, or have too many outcomes to draw.

    Example:
        >>> plot("entropy", torch.tensor([0.1, 0.9]), unit="bits").startswith("<?xml")
        True
    """
    shown = profile(quantity, p, q, unit=unit)
    known = shown.total if exact is None else exact / UNITS[unit]
    rows = 2 if drawable is None else 3
    with figure_of(8, 2.75 * rows) as figure:
        axes = figure.subplots(rows, 1)
        axes[1].sharex(axes[0])
        _masses(axes[0], shown, names)
        _adds(axes[1], shown, quantity, unit, known)
        for axis in axes[:2]:
            _label_places(axis, shown, labels, last=axis is axes[1])
        figure.align_ylabels(axes[:2])
        if drawable is not None:
            against = f"{'quadrature' if exact is None else 'exact'}, {number(known)}"
            _scatter(axes[2], _repeats(drawable, draws, seed), unit=unit, known=known)
            axes[2].set_title(f"{axes[2].get_title(loc='left')} each; dashed: {against}")
        return svg_of(figure)


def _masses(axis: Any, shown: Profile, names: Sequence[str]) -> None:
    """Draw p and q: bars side by side, or curves over a tint."""
    both = [(shown.p, BLUE, "P"), (shown.q, ORANGE, "Q")]
    both = [(values, color, letter) for values, color, letter in both if values is not None]
    for place, (values, color, letter) in enumerate(both):
        name = names[place] if place < len(names) else letter
        words = letter if name == letter or len(name) > LABEL_LETTERS else f"{letter}: {name}"
        if shown.discrete and len(shown.x) <= BARS:
            wide = 0.8 / len(both)
            left = shown.x + (place - (len(both) - 1) / 2) * wide
            axis.bar(left, values, width=wide * 0.92, color=color, label=words)
        else:
            step = "mid" if shown.discrete else None
            axis.fill_between(shown.x, values, step=step, color=color, alpha=0.15, linewidth=0)
            drawing = "steps-mid" if shown.discrete else "default"
            axis.plot(shown.x, values, color=color, label=words, drawstyle=drawing, linewidth=1.8)
    axis.set_title("P and Q" if len(both) > 1 else "P")
    axis.set_ylabel("probability" if shown.discrete else "density")
    axis.set_ylim(bottom=0)
    _legend(axis)


def _adds(axis: Any, shown: Profile, quantity: str, unit: str, known: float) -> None:
    """Draw the integrand, what adds in one colour and what takes away in another."""
    symbol, formula = FORMULAS[quantity]
    formula = formula.format(log={"bits": "log₂", "nats": "ln"}[unit])
    finite = np.isfinite(shown.integrand)
    values = np.where(finite, shown.integrand, 0.0)
    up, down = values.clip(min=0), values.clip(max=0)
    for part, color, words in ((up, GREEN, "adds"), (down, PURPLE, "takes away")):
        if bool((part != 0).any()):
            if shown.discrete and len(shown.x) <= BARS:
                axis.bar(shown.x, part, width=0.6, color=color, label=words)
            else:
                step = "mid" if shown.discrete else None
                axis.fill_between(
                    shown.x, part, step=step, color=color, alpha=0.75, linewidth=0, label=words
                )
    axis.axhline(0, color=INK, linewidth=0.8)
    what = "sum" if shown.discrete else "area"
    axis.set_title(f"{formula}, whose {what} is {symbol} = {number(known)} {unit}")
    axis.set_ylabel(unit if shown.discrete else f"{unit} per unit of x")
    if not bool(finite.all()):
        low, high = axis.get_ylim()
        axis.set_ylim(low, max(high, -low / 3))
        top = np.full_like(shown.x[~finite], axis.get_ylim()[1])
        axis.plot(shown.x[~finite], top, "^", color=GREEN, label="+∞: Q has no mass", clip_on=False)
    if bool((down != 0).any()) or not bool(finite.all()):
        _legend(axis)


def _legend(axis: Any) -> None:
    """Put the legend on the title's line, where it hides nothing."""
    place = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.99), "borderpad": 0.1}
    axis.legend(**place, ncols=3, handlelength=1.2, columnspacing=1.2)


def _label_places(axis: Any, shown: Profile, labels: Sequence[str], *, last: bool) -> None:
    """Name the places on the horizontal axis."""
    if labels and len(labels) <= NAMED:
        axis.set_xticks(shown.x.tolist(), [label[:12] for label in labels])
    elif shown.discrete and len(shown.x) <= NAMED:
        axis.set_xticks(shown.x.tolist())
    else:
        axis.set_xlabel("x" if last else "")


def _repeats(drawable: Sequence[Any], draws: int, seed: int) -> dict[str, Estimate]:
    """Return each estimator's values over repeats, as many as `NUMBERS` allows."""
    p, q = drawable
    draws = min(draws, NUMBERS // 20)
    seeded = torch.Generator().manual_seed(seed)
    repeats = min(REPEATS, NUMBERS // draws)
    return estimators(p, q, draws=draws, repeats=repeats, generator=seeded)


def _scatter(axis: Any, found: Mapping[str, Estimate], *, unit: str, known: float) -> None:
    """Draw each estimator's values over repeats, their mean and their central 90 %."""
    values = {name: found[name].value / UNITS[unit] for name in ESTIMATORS}
    repeats = len(values["k1"])
    spread = torch.linspace(-0.22, 0.22, repeats, dtype=torch.float64)
    spread = spread[torch.randperm(repeats, generator=torch.Generator().manual_seed(0))]
    for row, each in enumerate(values.values()):
        _row(axis, row, each, spread)
    outside = _limit(axis, torch.cat([*values.values()]), list(values.values()), known)
    axis.axvline(known, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    axis.set_title(f"Estimators, {repeats} repeats of {found['k1'].draws:,} draws")
    axis.set_yticks(range(len(ESTIMATORS)), [NAMES[name] for name in ESTIMATORS])
    axis.set_ylim(len(ESTIMATORS) - 0.5, -0.5)
    axis.set_xlabel(f"{unit} (bar: central 90 %; white: mean{outside})")
    axis.tick_params(axis="y", length=0)


def _limit(axis: Any, every: Tensor, groups: Sequence[Tensor], known: float) -> str:
    """Leave a few stray values outside the frame, and say how many."""
    levels = torch.tensor([0.01, 0.99], dtype=torch.float64)
    finite = [group[group.isfinite()] for group in groups]
    ends = [torch.quantile(group, levels) for group in finite if len(group)]
    inside = torch.cat([*ends, torch.tensor([known]).double()]) if ends else every
    inside = inside[inside.isfinite()]
    if not len(inside):
        return ""
    low, high = float(inside.min()), float(inside.max())
    room = 0.08 * (high - low) or 1.0
    axis.set_xlim(low - room, high + room)
    outside = int(((every < low - room) | (every > high + room)).sum())
    return f"; {outside} of {len(every)} values lie outside" if outside else ""


def _row(axis: Any, row: int, values: Tensor, spread: Tensor) -> None:
    finite = values.isfinite()
    if not bool(finite.any()):
        axis.text(
            0.02, row, "+∞ in every repeat", transform=axis.get_yaxis_transform(), va="center"
        )
        return
    values, spread = values[finite], spread[finite]
    axis.plot(
        values.numpy(),
        (row + spread).numpy(),
        ".",
        color=FAINT,
        alpha=0.35,
        markersize=4,
        markeredgewidth=0,
    )
    low, high = torch.quantile(values, torch.tensor([0.05, 0.95], dtype=values.dtype)).tolist()
    axis.plot([low, high], [row, row], color=BLUE, linewidth=5, solid_capstyle="round", zorder=3)
    mean = float(values.mean())
    axis.plot([mean], [row], "o", color="white", markeredgecolor=BLUE, markersize=6, zorder=4)
