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

from .figures import BLUE, FAINT, GREEN, INK, ORANGE, figure_of, svg_of

__all__ = ["plot_directions", "plot_identity"]

SHOWN = 9.0  # nats below the peak that are drawn
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
    >>> from kullback.variational.by_quadrature import project
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


def _line(axis: Any, p: Posterior, found: Projection) -> None:
    x, density = p.nodes[:, 0].numpy(), p.log_density.exp().numpy()
    seen = p.nodes[p.log_density > p.log_density.max() - SHOWN]
    fine = torch.linspace(float(seen.min()) - 1, float(seen.max()) + 1, 401, dtype=p.nodes.dtype)
    with torch.no_grad():
        q = found.family.log_prob(fine[:, None]).exp()
    axis.fill_between(x, density, color=BLUE, alpha=0.25, linewidth=0, label="p")
    axis.plot(fine.numpy(), q.numpy(), color=ORANGE, linewidth=1.8, label="q")
    top = max(axis.get_ylim()[1], 1.08 * float(q.max()))
    axis.set_ylim(0, top)
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
    seen = p.nodes[p.log_density > p.log_density.max() - SHOWN]
    for limit, column in zip((axis.set_xlim, axis.set_ylim), seen.unbind(1), strict=False):
        low, high = float(column.min()), float(column.max())
        room = 0.15 * (high - low)
        limit(low - room, high + room)
