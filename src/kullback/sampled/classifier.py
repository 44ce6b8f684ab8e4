"""A density ratio learned by a classifier, and the divergences it proves.

A classifier told apart draws of p and of q; its log odds T estimate log p/q. For *any* T,
`KL(p‖q) ≥ E_p[T] − E_q[e^T] + 1` and `JS ≥ log 2 + ½ E_p[log σ(T)] + ½ E_q[log σ(−T)]`, so with T
fitted on other draws than those averaged, the estimates are biased low and never high, whatever
the laws are: atoms, heavy tails, many dimensions.

|T| is cut at `½ log n`. An event of q that none of n draws met has a probability of about 3/n at
most; it then changes `E_q[e^T]` by 3/√n at most. No bound from n draws that holds for every law is
above about log n (McAllester and Stratos 2020, theorem 1.1).

Reference: Nguyen, Wainwright and Jordan (2010), "Estimating divergence functionals", eq. 12.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from . import limits
from .samples import covariance_of, whitened

__all__ = ["FOLDS", "held_out_log_ratio"]

FOLDS, _STEPS, _HALVINGS = 5, 25, 6


def held_out_log_ratio(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return T ≈ log p/q at every x and y, `[n]` and `[m]`, each from a fit that never saw it.

    x `[n, d]` from p, y `[m, d]` from q, in an order that says nothing. Logistic regression on
    linear and quadratic terms (exact for two Gaussians) or linear ones alone, in five folds. Terms
    and ridge penalty are chosen on a fold that neither the fit nor the average uses; a penalty so
    large that T = 0 is among them.

    >>> x = torch.linspace(-2.0, 2.0, 50, dtype=torch.float64)[:, None]
    >>> at_x, at_y = held_out_log_ratio(x, x + 3.0)
    >>> bool((at_x > 0).double().mean() > 0.8), bool((at_y < 0).double().mean() > 0.8)
    (True, True)
    """
    data = _Labelled.of(x, y)
    most = 0.5 * math.log(min(len(x), len(y)))
    logits = torch.empty_like(data.labels)
    for fold in range(FOLDS):
        held, validation = data.place % FOLDS == fold, data.place % FOLDS == (fold + 1) % FOLDS
        choice = _best(data, ~(held | validation), validation)
        logits[held] = choice.fitted(data, ~held, held) if choice else 0.0
    logits = logits.clamp(-most, most)
    return logits[: len(x)], logits[len(x) :]


@dataclass(frozen=True)
class _Labelled:
    """Points of both samples `[N, d]`, labels (1 for x), balancing weights and places."""

    points: Tensor
    labels: Tensor
    balance: Tensor
    place: Tensor

    @staticmethod
    def of(x: Tensor, y: Tensor) -> "_Labelled":
        points = torch.cat([x, y])
        first = torch.arange(len(points), device=x.device) < len(x)
        place = torch.cat([torch.arange(len(x)), torch.arange(len(y))]).to(x.device)
        balance = torch.where(first, 0.5 / len(x), 0.5 / len(y)) * len(points)
        return _Labelled(points, first.double(), balance, place)

    def loss(self, logits: Tensor, rows: Tensor) -> float:
        """Return the balanced mean logistic loss of some rows, in nats."""
        labels, balance = self.labels[rows], self.balance[rows]
        return float((balance * (softplus(logits) - labels * logits)).sum() / balance.sum())


@dataclass(frozen=True)
class _Choice:
    quadratic: bool
    penalty: float

    def fitted(self, data: _Labelled, fit: Tensor, at: Tensor) -> Tensor:
        terms = _terms(data, fit, quadratic=self.quadratic)
        weights = torch.zeros_like(terms[0])
        weights = _fit(terms[fit], data.labels[fit], data.balance[fit], self.penalty, weights)
        return terms[at] @ weights


def _best(data: _Labelled, fit: Tensor, validation: Tensor) -> _Choice | None:
    """Return the terms and penalty of least validation loss, None where T = 0 is best."""
    best, least = None, math.log(2.0)
    for quadratic in (False, True):
        terms = _terms(data, fit, quadratic=quadratic)
        weights = torch.zeros_like(terms[0])
        for penalty in limits.PENALTIES:  # from large to small: each starts where the last ended
            weights = _fit(terms[fit], data.labels[fit], data.balance[fit], penalty, weights)
            loss = data.loss(terms[validation] @ weights, validation)
            if loss < least:
                best, least = _Choice(quadratic, penalty), loss
    return best


def _terms(data: _Labelled, fit: Tensor, *, quadratic: bool) -> Tensor:
    """Return 1 and standardised terms of all points, by moments of the rows to fit alone.

    Coordinates are whitened within the two classes and cut at 5 deviations.
    """
    labels, points = data.labels[fit], data.points[fit]
    first, second = (covariance_of(points[labels == label]) for label in (0.0, 1.0))
    within = 0.5 * (first + second)
    z = whitened(data.points, within, like=points).clamp(-limits.FURTHEST, limits.FURTHEST)
    if quadratic:
        d = z.shape[1]
        crossed = d * (d + 3) // 2 * limits.DRAWS_PER_TERM <= len(points)
        pairs = (
            torch.triu_indices(d, d, device=z.device) if crossed else torch.arange(d).repeat(2, 1)
        )
        z = torch.cat([z, z[:, pairs[0]] * z[:, pairs[1]]], 1)
    spread = z[fit].std(0)
    z = (z - z[fit].mean(0)) / torch.where(spread > 0, spread, 1.0)
    return torch.cat([torch.ones_like(z[:, :1]), z], 1)


def _fit(terms: Tensor, labels: Tensor, balance: Tensor, penalty: float, weights: Tensor) -> Tensor:
    """Minimise the balanced logistic loss plus the ridge by Newton's method with halving steps."""
    ridge = torch.full_like(weights, penalty)
    ridge[0] = 0.0

    def loss(weights: Tensor) -> Tensor:
        logits = terms @ weights
        fit = softplus(logits) - labels * logits
        return (balance * fit).sum() + 0.5 * (ridge * weights**2).sum()

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
        gained = float(now - trial)
        if not gained > 0:
            break
        weights, now = weights - step, trial
        if gained < 1e-9 * len(terms):  # far below the error of a mean over the held-out draws
            break
    return weights
