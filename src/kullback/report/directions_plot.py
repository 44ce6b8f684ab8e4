"""Mode covering and mode seeking, drawn: p, and the q nearest to it in either direction.

Which to use: `plot_directions` for the two directions side by side, with one Gaussian and with a
mixture; `plot_identity` for ELBO + KL = log evidence, step by step. Both return SVG text on a white
card, right on light and dark pages.
"""

from collections.abc import Sequence
from typing import Any

import torch

from kullback.exact.quadrature import Posterior
from kullback.variational.by_quadrature import Projection

from .divergence_plot import BLUE, FAINT, GREEN, INK, ORANGE
from .layout import number
from .svg import figure_of, svg_of

__all__ = ["plot_directions", "plot_identity"]

TITLES = {"forward": "forward, KL(p‖q): covers", "reverse": "reverse, KL(q‖p): seeks"}


def plot_directions(
    p: Posterior, found: Sequence[Sequence[Projection]], names: Sequence[str]
) -> str:
    """Draw p and q for rows of projections (a family each) and columns (a direction each) as SVG.

    p: on its grid, in one or two dimensions. found: `found[family][direction]`. names: of the
    families. Under each panel stand both exact KLs in nats.

    >>> from kullback.exact import quadrature
    >>> from kullback.variational.by_quadrature import project
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
                kls = (f"KL(p‖q) = {number(one.forward)}", f"KL(q‖p) = {number(one.reverse)} nats")
                axis.set_xlabel(", ".join(kls))
        _frame(axes[0, 0], p)
        if p.nodes.shape[1] == 1:
            axes[0, 0].legend(loc="upper right", handlelength=1.2)
        return svg_of(figure)


def plot_identity(found: Projection) -> str:
    """Draw the ELBO rising and KL(q‖p) shrinking above it, their sum the log evidence, as SVG.

    >>> from kullback.exact import quadrature
    >>> from kullback.variational.by_quadrature import project
    >>> p = quadrature.posterior(lambda z: -0.5 * z[:, 0] ** 2, lower=-9, upper=9, nodes=60)
    >>> plot_identity(project(p, "reverse")).startswith("<?xml")
    True
    """
    elbo = [step.elbo for step in found.steps]
    steps = list(range(len(elbo)))
    total = [step.elbo + step.reverse for step in found.steps]
    with figure_of(8.0, 3.0) as figure:
        axis = figure.subplots()
        axis.fill_between(
            steps, elbo, total, color=ORANGE, alpha=0.25, linewidth=0, label="KL(q‖p)"
        )
        axis.plot(steps, elbo, "o-", color=BLUE, markersize=4, label="ELBO")
        axis.plot(steps, total, "x", color=INK, markersize=5, label="ELBO + KL(q‖p)")
        axis.axhline(found.log_evidence, color=GREEN, linewidth=1.2, label="log evidence")
        axis.set_title("ELBO + KL(q‖p) = log evidence, at every step")
        axis.set_xlabel("step")
        axis.set_ylabel("nats")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(loc="lower right", ncols=2, handlelength=1.2)
        return svg_of(figure)


def _line(axis: Any, p: Posterior, found: Projection) -> None:
    x, density = p.nodes[:, 0].numpy(), p.log_density.exp().numpy()
    with torch.no_grad():
        q = found.family.log_prob(p.nodes).exp().numpy()
    axis.fill_between(x, density, color=BLUE, alpha=0.25, linewidth=0, label="p")
    axis.plot(x, q, color=ORANGE, linewidth=1.8, label="q")
    axis.set_ylim(bottom=0)
    axis.set_yticks([])


def _plane(axis: Any, p: Posterior, found: Projection) -> None:
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


def _frame(axis: Any, p: Posterior) -> None:
    """Show where p has mass, with room beside it."""
    seen = p.nodes[p.log_density > p.log_density.max() - 9.0]
    for limit, column in zip((axis.set_xlim, axis.set_ylim), seen.unbind(1), strict=False):
        low, high = float(column.min()), float(column.max())
        room = 0.15 * (high - low)
        limit(low - room, high + room)
