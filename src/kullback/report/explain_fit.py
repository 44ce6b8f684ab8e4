"""Explanation of a fit: log p(x) = ELBO + KL(q‖p) with the fit's numbers, and q beside p(z|x).

Which to use: `exact_posterior(target)` for p(z|x) in one or two dimensions, `explain_fit` for the
text, `exact_posterior_draws` for the reference that `fit_plot.plot_fit` draws.
"""

import math

import numpy as np
import torch
from torch import Tensor

from kullback.exact import quadrature
from kullback.variational import Diagnosis, Fit, Target, search_box

from .limits import DENSITY_DRAWN, MASS_OUTSIDE
from .text_layout import aligned, number, signed

__all__ = ["exact_posterior", "exact_posterior_draws", "explain_fit"]

NODES = {1: 600, 2: 150}  # a dimension: at most 22,500 points
ROWS, BAR = 15, 26  # lines and widest bar of the drawing


def exact_posterior(target: Target) -> quadrature.Posterior | None:
    """Return p(z|x) by quadrature on the unconstrained space; None above two dimensions.

    None as well where no finite box holds the density (very heavy tails), or it is NaN in the box.

    Args:
        target: The log density of a fit.

    Returns:
        The posterior on the nodes of a grid, with the log evidence in nats; or None.

    Example:
        >>> target = Target.of(lambda z: -0.5 * z.square().sum(), 1)
        >>> round(float(exact_posterior(target).log_evidence), 6)
        0.918939
    """
    with torch.no_grad():
        box = search_box(target.log_density, target.dim) if target.dim in NODES else None
        if box is None:
            return None
        (lower, upper), count = box, NODES[target.dim]
        nodes, _ = quadrature.grid(lower, upper, nodes=count)
        coarse, _ = quadrature.grid(lower, upper, nodes=count // 2)
        logs = target.log_density(torch.cat([nodes, coarse]))
        if bool(logs.isnan().any()) or not bool((logs[: len(nodes)] > -torch.inf).any()):
            return None
        return quadrature.posterior(target.log_density, lower=lower, upper=upper, nodes=count)


def explain_fit(found: Fit, diagnosis: Diagnosis, exact: quadrature.Posterior | None) -> str:
    """Explain a fit: ELBO and KL(q‖p) under each other, their sum, and what it is (MATH 2.1).

    Args:
        found: the fit.
        diagnosis: its `assess`, whose estimates are shown where there is no `exact`.
        exact: `exact_posterior(found.target)`. With it ELBO, KL and log p(x) are three separate
            integrals; in one dimension p(z|x) is drawn beside q(z), too.

    Returns:
        The text, in nats.

    Example:
        >>> from kullback.variational import fit
        >>> found = fit(lambda z: -0.5 * z.square().sum(), 1)
        >>> exact = exact_posterior(found.target)
        >>> print(explain_fit(found, found.diagnosis, exact).splitlines()[0])
        log p(x) = ELBO(q) + KL(q‖p), for every q (MATH 2.1)
    """
    text = None if exact is None else _exact(found, exact)
    lines = _sampled(diagnosis) if text is None else text
    head = "log p(x) = ELBO(q) + KL(q‖p), for every q (MATH 2.1)"
    drawing = [] if exact is None or found.target.dim != 1 else ["", *_drawing(found, exact)]
    return "\n".join([head, "", *lines, *_MEANING, *drawing])


def exact_posterior_draws(
    target: Target, exact: quadrature.Posterior, n: int = 20_000
) -> dict[str, Tensor]:
    """Return n evenly spaced quantiles of a one-dimensional p(z|x) in the user's parameters.

    Args:
        target: A target of one dimension.
        exact: Its `exact_posterior`.
        n: How many.

    Returns:
        The quantiles by the name of the parameter, `[n, *shape]`.

    Example:
        >>> target = Target.of(lambda z: -0.5 * z.square().sum(), 1)
        >>> z = exact_posterior_draws(target, exact_posterior(target))["z"]
        >>> z.shape, round(float(z.std()), 2)
        (torch.Size([20000, 1]), 1.0)
    """
    mass = (exact.log_density + exact.log_weights).exp()
    below = ((mass.cumsum(0) - mass / 2) / mass.sum()).numpy()  # of a node: half of its own mass
    levels = (np.arange(n) + 0.5) / n
    z = np.interp(levels, below, exact.nodes[:, 0].numpy())
    with torch.no_grad():
        return target.constrain(torch.from_numpy(z)[:, None])


def _exact(found: Fit, exact: quadrature.Posterior) -> list[str] | None:
    """Lay out the three integrals; None where the grid does not hold q or a value is infinite."""
    log_q = found.log_prob(exact.nodes)
    mass = (log_q + exact.log_weights).exp()
    evidence = float(exact.log_evidence)
    terms = exact.log_density + exact.log_evidence - log_q
    elbo = float((mass * terms.where(mass > 0, 0.0)).sum())
    kl = float(exact.kl_from(found.log_prob))
    if abs(float(mass.sum()) - 1) > MASS_OUTSIDE or not math.isfinite(elbo + kl):
        return None
    rows = [
        ["ELBO(q)", "E_q[log p(x, z) − log q(z)]", signed(elbo)],
        ["KL(q‖p)", "E_q[log q(z) − log p(z|x)]", signed(max(kl, 0.0))],
        ["", "", "─" * 9],
        ["sum", "", signed(elbo + kl)],
        ["log p(x)", "log ∫ p(x, z) dz", signed(evidence)],
    ]
    gap = abs(elbo + kl - evidence)
    return [
        *(f"  {line}" for line in aligned(rows, left=(0, 1))),
        "",
        f"They add up: sum and log p(x) differ by {number(gap)} nats. Each of the three is an",
        f"integral of its own, by quadrature on {len(exact.nodes):,} nodes.",
    ]


def _sampled(diagnosis: Diagnosis) -> list[str]:
    """Lay out what draws of q estimate."""
    total = float(diagnosis.elbo.value) + float(diagnosis.kl.value)
    rows = [
        ["ELBO(q)", "E_q[log p(x, z) − log q(z)]", diagnosis.elbo.brief],
        ["KL(q‖p)", "E_q[log q(z) − log p(z|x)]", diagnosis.kl.brief],
    ]
    if not math.isfinite(total):
        why = "No finite sum: the ELBO is −inf and the KL +inf where q has mass and p has none."
        return [*(f"  {line}" for line in aligned(rows, left=(0, 1, 2))), "", why]
    rows.append(["sum", "log of the mean of p(x, z)/q(z)", f"{number(total)} nats"])
    return [
        *(f"  {line}" for line in aligned(rows, left=(0, 1, 2))),
        "",
        "They add up: both are estimated from the same draws of q, and the sum is the usual",
        "estimate of log p(x) by importance sampling, which is too low where q misses mass of p.",
        "In one or two dimensions, where a box holds p and q, each is a quadrature of its own.",
    ]


_MEANING = (
    "log p(x) is the log of the integral of the given density. It does not depend on q: the larger",
    "the ELBO, the smaller the KL. KL ≥ 0, so the ELBO is a lower bound on log p(x).",
)


def _drawing(found: Fit, exact: quadrature.Posterior) -> list[str]:
    """Draw p(z|x) and q(z) side by side, a line for each of `ROWS` values of z."""
    nodes, p = exact.nodes[:, 0].numpy(), exact.log_density.exp().numpy()
    q = found.log_prob(exact.nodes).exp().numpy()
    drawn = nodes[np.maximum(p / p.max(), q / q.max()) > DENSITY_DRAWN]
    places = np.linspace(drawn[0], drawn[-1], ROWS)
    top = max(p.max(), q.max())
    rows = [[f"{found.target.names[0]}, unconstrained", "true p(z|x)", "q(z)"]]
    for z in places:
        bars = (
            mark * round(BAR * float(np.interp(z, nodes, density)) / top)
            for mark, density in (("█", p), ("▒", q))
        )
        rows.append([f"{z:.3g}".replace("-", "−"), *bars])
    named = "the densities of unconstrained z, to one scale"
    return [f"The true posterior and q: {named}", *(f"  {line}" for line in _columns(rows))]


def _columns(rows: list[list[str]]) -> list[str]:
    wide = max(len(row[0]) for row in rows)
    return [f"{z:>{wide}}  {p:<{BAR}}  {q}".rstrip() for z, p, q in rows]
