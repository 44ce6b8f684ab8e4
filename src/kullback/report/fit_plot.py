"""Pictures of a fit: marginals and pairs of q, with draws of a reference beside them; its trace.

Which to use: `plot_fit` for marginals on the diagonal and pairs below it, with the trace in the
corner that this leaves free; `plot_trace` for the objective alone; `plot_calibration` for ranks of
simulated parameters. All return SVG text on a white card. Orange is q, blue the reference.

Mode covering and mode seeking: `plot_directions` for p and the q nearest to it in both directions,
with one Gaussian and with a mixture; `plot_identity` for ELBO + KL = log evidence, step by step.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kullback.core import require
from kullback.exact import quadrature
from kullback.variational import Calibration, Projection, ecdf_band

from .figures import BLUE, FAINT, GREEN, INK, ORANGE, figure_of, svg_of
from .limits import BAR_LEVEL, FIT_ENTRIES, LIKELY_DEPTH

__all__ = ["plot_calibration", "plot_directions", "plot_fit", "plot_identity", "plot_trace"]

_DOTS, _BINS, _TAIL = 400, 40, 0.001


def plot_fit(
    draws: Mapping[str, Tensor],
    *,
    reference: Mapping[str, Tensor] | None = None,
    trace: Sequence[float] = (),
    title: str = "",
) -> str:
    """Draw the marginals of up to six parameter entries, and every pair of them, as SVG.

    Args:
        draws: Constrained draws of q, `{name: [n, *shape]}`.
        reference: Draws of the exact posterior, or of MCMC, under the same names.
        trace: The objective by iteration, in nats.
        title: The verdict.

    Returns:
        The SVG document.

    Raises:
        ArgumentValueError: There are no draws, or the reference lacks one of the names drawn.

    Example:
        >>> import torch
        >>> plot_fit({"mu": torch.randn(100)}, trace=[-3.0, -1.0]).startswith("<?xml")
        True
    """
    q = _entries(draws)
    require(bool(q), "draws", "at least one parameter that varies", "none")
    p = {} if reference is None else _entries(reference, only=q)
    names = list(q)
    size = len(names)
    side = max(size, 2)
    with figure_of(max(2.3 * side, 6.0), max(2.0 * size, 2.6)) as figure:
        axes = figure.subplots(size, side, squeeze=False)
        for row, name in enumerate(names):
            for column in range(side):
                axis = axes[row, column]
                if column == row:
                    _marginal(axis, q[name], p.get(name))
                    axis.set_title(name, fontsize=10)
                elif column < row:
                    other = names[column]
                    _pair(axis, (q[other], q[name]), (p.get(other), p.get(name)))
                else:
                    axis.set_axis_off()
                axis.tick_params(labelsize=7, colors=FAINT)
        if trace:
            axes[0, side - 1].set_axis_on()
            _trace(axes[0, side - 1], trace)
        if p:
            axes[0, 0].legend(fontsize=7, loc="upper right", handlelength=1.0)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, wrap=True)
        return svg_of(figure)


def plot_calibration(found: Calibration) -> str:
    """Draw rank histograms, and the ranks' distribution functions less the diagonal, as SVG.

    One row a quantity, those that are not uniform first, six at most. Grey is where uniform ranks
    stay: in the histogram a bar alone, 99 times of 100; beside it the whole curve at once.

    Args:
        found: What `calibrate` returned.

    Returns:
        The SVG document.

    Example:
        >>> import torch
        >>> plot_calibration(Calibration(("mu",), torch.rand(50, 1))).startswith("<?xml")
        True
    """
    order = sorted(range(len(found.rows)), key=lambda i: found.rows[i].verdict == "uniform")
    chosen = order[:FIT_ENTRIES]
    points, lower, upper = (x.numpy() for x in found.band())
    with figure_of(8.0, 1.6 * len(chosen) + 0.9) as figure:
        axes = figure.subplots(len(chosen), 2, squeeze=False)
        for (left, right), place in zip(axes, chosen, strict=True):
            row, ranks = found.rows[place], found.ranks[:, place].numpy()
            color = GREEN if row.verdict == "uniform" else ORANGE
            _rank_histogram(left, row.histogram, color)
            left.set_title(row.name, fontsize=10)
            share = (ranks[:, None] <= points).mean(0)
            right.fill_between(points, lower - points, upper - points, color=FAINT, alpha=0.25)
            right.plot(points, share - points, color=color, linewidth=1.4)
            right.set_title(row.verdict, fontsize=10)
            for axis in (left, right):
                axis.set_xlim(0, 1)
                axis.tick_params(labelsize=7, colors=FAINT)
        axes[-1, 0].set_xlabel("rank of the true value", fontsize=8)
        axes[-1, 1].set_xlabel("rank; curve: share of ranks below, less the rank", fontsize=8)
        figure.suptitle(found.verdict, x=0.01, ha="left", fontsize=10, wrap=True)
        return svg_of(figure)


def _rank_histogram(axis: Any, counts: Sequence[int], color: str) -> None:
    """Draw counts of equal bins, and in grey what 99 of 100 uniform ones would be."""
    n, bins = sum(counts), len(counts)
    low, high = ecdf_band(n, torch.tensor([1 / bins]), BAR_LEVEL)
    axis.axhspan(int(low), int(high), color=FAINT, alpha=0.25)
    middle = (np.arange(bins) + 0.5) / bins
    axis.bar(middle, counts, 0.9 / bins, color=color)


def plot_trace(trace: Sequence[float]) -> str:
    """Draw the objective against iterations, in nats, as SVG; values that are not finite are gaps.

    Errors: `ArgumentValueError` for an empty trace.

    >>> plot_trace([-9.0, -2.0, -1.0]).startswith("<?xml")
    True
    """
    require(len(trace) > 0, "trace", "at least one value", "none")
    with figure_of(6.0, 3.0) as figure:
        _trace(figure.subplots(), trace)
        return svg_of(figure)


def _entries(
    draws: Mapping[str, Tensor], only: Mapping[str, Any] | None = None
) -> dict[str, np.ndarray[Any, Any]]:
    """Flatten parameters to named columns that vary; the first six, or those asked for."""
    found: dict[str, np.ndarray[Any, Any]] = {}
    for name, value in draws.items():
        columns = value.detach().double().reshape(len(value), -1)
        for place, column in enumerate(columns.unbind(1)):
            index = np.unravel_index(place, tuple(value.shape[1:])) if value.ndim > 1 else ()
            label = f"{name}[{','.join(str(int(i) + 1) for i in index)}]" if index else name
            wanted = len(found) < FIT_ENTRIES if only is None else label in only
            if wanted and (only is not None or float(column.max()) > float(column.min())):
                found[label] = column.numpy()
    for label in only or ():
        require(label in found, "reference", f"draws of {label}", "none", "the names of the fit")
    return found


def _marginal(axis: Any, q: Any, p: Any) -> None:
    both = q if p is None else np.concatenate([q, p])
    low, high = np.quantile(both, [_TAIL, 1 - _TAIL])
    bins = np.linspace(low, high, _BINS + 1)
    if p is not None:
        axis.hist(p, bins, density=True, color=BLUE, alpha=0.3, label="reference")
    axis.hist(q, bins, density=True, histtype="step", color=ORANGE, linewidth=1.6, label="q")
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)


def _pair(axis: Any, q: tuple[Any, Any], p: tuple[Any, Any]) -> None:
    dots = {"markersize": 4, "markeredgewidth": 0, "alpha": 0.5, "rasterized": False}
    for (x, y), color in ((p, BLUE), (q, ORANGE)):
        if x is not None and y is not None:
            axis.plot(_some(x), _some(y), ".", color=color, **dots)


def _some(values: Any) -> Any:
    return values[:: max(1, math.ceil(len(values) / _DOTS))]


def _trace(axis: Any, trace: Sequence[float]) -> None:
    """Draw the objective; the vertical axis follows what comes after the first tenth."""
    values = np.asarray(trace, dtype=float)
    values[~np.isfinite(values)] = np.nan
    axis.plot(values, color=ORANGE, linewidth=1.4)
    late = values[len(values) // 10 :]
    late = late[np.isfinite(late)]
    if len(late) and late.max() > late.min():
        room = 0.1 * (late.max() - late.min())
        axis.set_ylim(late.min() - room, late.max() + room)
    axis.set_title("objective, nats", fontsize=10)
    axis.set_xlabel("iteration", fontsize=8)


TITLES = {"forward": "forward, KL(p‖q): covers", "reverse": "reverse, KL(q‖p): seeks"}


def plot_directions(
    p: quadrature.Posterior, found: Sequence[Sequence[Projection]], names: Sequence[str]
) -> str:
    """Draw p and q for rows of projections (a family each) and columns (a direction each) as SVG.

    Args:
        p: On its grid, in one or two dimensions.
        found: `found[family][direction]`.
        names: Of the families.

    Returns:
        The SVG document. Under each panel stand both exact KLs in nats.

    Example:
        >>> from kullback.exact import quadrature
        >>> from kullback.variational import project
        >>> p = quadrature.posterior(lambda z: -0.5 * z[:, 0] ** 2, lower=-9, upper=9, nodes=60)
        >>> plot_directions(p, [[project(p, "reverse")]], ["Gaussian"]).startswith("<?xml")
        True
    """
    rows, columns = len(found), len(found[0])
    with figure_of(4.0 * columns, 2.9 * rows) as figure:
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for row, name in enumerate(names):
            for column, one in enumerate(found[row]):
                axis = axes[row, column]
                (_line if p.nodes.shape[1] == 1 else _plane)(axis, p, one)
                axis.set_title(f"{name}, {TITLES[one.direction]}")
                kls = f"KL(p‖q) = {one.forward:z.4f}, KL(q‖p) = {one.reverse:z.4f} nats"
                axis.set_xlabel(kls)
        _frame(axes[0, 0], p)
        if p.nodes.shape[1] == 1:
            axes[0, 0].legend(loc="upper right", handlelength=1.2)
        return svg_of(figure)


def plot_identity(found: Sequence[Projection], names: Sequence[str]) -> str:
    """Draw the ELBO rising and KL(q‖p) shrinking above it, their sum the log evidence, as SVG.

    One panel for each of `found`, with a name each; their steps are from start to optimum.

    >>> from kullback.exact import quadrature
    >>> from kullback.variational import project
    >>> p = quadrature.posterior(lambda z: -0.5 * z[:, 0] ** 2, lower=-9, upper=9, nodes=60)
    >>> plot_identity([project(p, "reverse")], ["Gaussian"]).startswith("<?xml")
    True
    """
    with figure_of(4.0 * len(found), 3.0) as figure:
        axes = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
        for axis, name, one in zip(axes, names, found, strict=True):
            elbo = [step.elbo for step in one.steps]
            steps, total = list(range(len(elbo))), [step.elbo + step.reverse for step in one.steps]
            axis.axhline(one.log_evidence, color=GREEN, linewidth=1.2, label="log evidence")
            axis.fill_between(steps, elbo, total, color=ORANGE, alpha=0.25, linewidth=0)
            axis.plot(steps, total, "x", color=INK, markersize=5, label="ELBO + KL(q‖p)")
            axis.plot(steps, elbo, "o-", color=BLUE, markersize=4, label="ELBO")
            axis.set_title(f"{name}: KL(q‖p) ends at {one.reverse:z.4f}")
            axis.set_xlabel("step")
            axis.xaxis.get_major_locator().set_params(integer=True)
        axes[0].set_ylabel("nats (shaded: KL)")
        low = min(step.elbo for one in found for step in one.steps)
        room = 0.45 * (found[0].log_evidence - low) or 1.0
        axes[0].set_ylim(low - room, found[0].log_evidence + 0.2 * room)
        axes[-1].legend(loc="lower right", handlelength=1.2)
        return svg_of(figure)


def _line(axis: Any, p: quadrature.Posterior, found: Projection) -> None:
    x, density = p.nodes[:, 0].numpy(), p.log_density.exp().numpy()
    likely = p.nodes[p.log_density > p.log_density.max() - LIKELY_DEPTH]
    fine = torch.linspace(
        float(likely.min()) - 1, float(likely.max()) + 1, 401, dtype=p.nodes.dtype
    )
    with torch.no_grad():
        q = found.family.log_prob(fine[:, None]).exp()
    axis.fill_between(x, density, color=BLUE, alpha=0.25, linewidth=0, label="p")
    axis.plot(fine.numpy(), q.numpy(), color=ORANGE, linewidth=1.8, label="q")
    top = max(axis.get_ylim()[1], 1.08 * float(q.max()))
    axis.set_ylim(0, top)
    axis.set_yticks([])


def _plane(axis: Any, p: quadrature.Posterior, found: Projection) -> None:
    side = round(len(p.nodes) ** 0.5)
    shaped = (side, side)
    x, y = (p.nodes[:, i].reshape(shaped).numpy() for i in range(2))
    levels = [0.02, 0.1, 0.4, 0.8]
    with torch.no_grad():
        q = found.family.log_prob(p.nodes).exp()
    height = p.log_density.exp()
    axis.contourf(
        x,
        y,
        (height / height.max()).reshape(shaped).numpy(),
        [*levels, 1.01],
        colors=[BLUE],
        alpha=0.3,
    )
    drawn = (q / q.max()).reshape(shaped).numpy()
    axis.contour(x, y, drawn, levels, colors=[ORANGE], linewidths=1.4)
    axis.tick_params(colors=FAINT)


def _frame(axis: Any, p: quadrature.Posterior) -> None:
    """Show where p has mass, with room beside it."""
    likely = p.nodes[p.log_density > p.log_density.max() - LIKELY_DEPTH]
    for limit, column in zip((axis.set_xlim, axis.set_ylim), likely.unbind(1), strict=False):
        low, high = float(column.min()), float(column.max())
        room = 0.15 * (high - low)
        limit(low - room, high + room)
