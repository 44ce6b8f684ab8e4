"""A density ratio learned by a classifier, and the divergences it proves.

A classifier told apart draws of p and of q; its log odds T estimate log p/q. For *any* T,
`KL(p‖q) ≥ E_p[T] − E_q[e^T] + 1` and `JS ≥ log 2 + ½ E_p[log σ(T)] + ½ E_q[log σ(−T)]`, so with T
fitted on other draws than those averaged, the estimates are biased low and never high.

Reference: Nguyen, Wainwright and Jordan (2010), "Estimating divergence functionals", eq. 12.
"""

import torch
from torch import Tensor

__all__ = ["FOLDS", "held_out_log_ratio"]

FOLDS, _STEPS, _HALVINGS, _RIDGE = 5, 25, 6, 1.0


def held_out_log_ratio(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return T ≈ log p/q at every x and y, `[n]` and `[m]`, each from a fit that never saw it.

    x `[n, d]` from p, y `[m, d]` from q, in an order that says nothing. Logistic regression on all
    linear and quadratic terms (exact for two Gaussians), with a unit ridge on standardised terms,
    in five folds.

    >>> x = torch.linspace(-2.0, 2.0, 50, dtype=torch.float64)[:, None]
    >>> at_x, at_y = held_out_log_ratio(x, x + 3.0)
    >>> bool((at_x > 0).double().mean() > 0.8), bool((at_y < 0).double().mean() > 0.8)
    (True, True)
    """
    both = torch.cat([x, y])
    terms = _quadratic((both - both.mean(0)) / _spread(both))
    terms = (terms - terms.mean(0)) / _spread(terms)
    terms = torch.cat([torch.ones_like(terms[:, :1]), terms], 1)
    first = torch.arange(len(both), device=x.device) < len(x)
    place = torch.cat([torch.arange(len(x)), torch.arange(len(y))]).to(x.device)
    balance = torch.where(first, 0.5 / len(x), 0.5 / len(y)) * len(both)
    logits = torch.empty_like(terms[:, 0])
    for fold in range(FOLDS):
        held = place % FOLDS == fold
        weights = _fit(terms[~held], first[~held].to(terms), balance[~held])
        logits[held] = terms[held] @ weights
    return logits[: len(x)], logits[len(x) :]


def _spread(terms: Tensor) -> Tensor:
    spread = terms.std(0)
    return torch.where(spread > 0, spread, 1.0)


def _quadratic(z: Tensor) -> Tensor:
    rows, columns = torch.triu_indices(z.shape[1], z.shape[1], device=z.device)
    return torch.cat([z, z[:, rows] * z[:, columns]], 1)


def _fit(terms: Tensor, labels: Tensor, balance: Tensor) -> Tensor:
    """Minimise the balanced logistic loss plus the ridge by Newton's method with halving steps."""
    ridge = torch.full_like(terms[0], _RIDGE)
    ridge[0] = 0.0

    def loss(weights: Tensor) -> Tensor:
        logits = terms @ weights
        fit = torch.nn.functional.softplus(logits) - labels * logits
        return (balance * fit).sum() + 0.5 * (ridge * weights**2).sum()

    weights = torch.zeros_like(terms[0])
    now = loss(weights)
    for _ in range(_STEPS):
        chance = torch.sigmoid(terms @ weights)
        slope = terms.T @ (balance * (chance - labels)) + ridge * weights
        curve = (terms.T * (balance * chance * (1 - chance))) @ terms + torch.diag(ridge)
        step = torch.linalg.lstsq(curve, slope[:, None]).solution[:, 0]
        for _ in range(_HALVINGS):
            trial = loss(weights - step)
            if trial <= now:
                break
            step = 0.5 * step
        if not trial < now:
            break
        weights, now = weights - step, trial
    return weights
