"""Divergences that no chain rule cuts into slices: sums of f(p, q), once the normalisers are known.

Which to use: nothing here directly; `hidden` and `shards` do, for Jensen-Shannon, the skewed KLs
and total variation. With `g_p = ∂f/∂p` and `g_q = ∂f/∂q`, the gradient with respect to logits is

    p (g_p − Σ p g_p)   and   q (g_q − Σ q g_q),

so that a slice needs of all others but three numbers: the value and those two sums.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kullback.exact.bregman import log_excess

from .slices import BLOCK, log_probs

__all__ = ["Pointwise", "gradient", "sums_of"]


class Pointwise(NamedTuple):
    """Σ f(p, q): which f, and the weight β of p in the mixture m = β p + (1−β) q.

    kind: "jsd", β KL(p‖m) + (1−β) KL(q‖m); "skew_forward", KL(p‖m); "tv", ½ Σ |p − q|.
    """

    kind: str
    weight: float = 0.5
    temperature: float = 1.0


def sums_of(p: Tensor, q: Tensor, sums: Tensor, what: Pointwise) -> Tensor:
    """Return value, Σ p g_p and Σ q g_q of a slice, `[3, n]`, float64; p, q: logits `[n, slice]`.

    sums: `[len(Sum), n]`, of which the maxima and log-normalisers of the whole are used.
    """
    found = sums.new_zeros(3, len(p))
    for rows in _lots(p):
        for row, each in enumerate(_densities(p[rows], q[rows], sums[:, rows, None], what)[:3]):
            found[row, rows] = each.sum(-1, dtype=torch.float64)
    return found


def gradient(
    p: Tensor,
    q: Tensor,
    sums: Tensor,
    found: Tensor,
    scale: Tensor,
    what: Pointwise,
    out: tuple[Tensor | None, Tensor | None],
) -> None:
    """Fill `scale` `[n]` times the gradients with respect to p's and q's logits of a slice.

    found: what `sums_of` gave, added up over all slices. out: `[n, slice]`, or None: not wanted.
    """
    for rows in _lots(p):
        _, *pulls = _densities(p[rows], q[rows], sums[:, rows, None], what)
        for grad, pull, prob, total in zip(out, pulls[:2], pulls[2:], found[1:], strict=True):
            if grad is not None:
                inner = pull - prob * total[rows, None].to(prob.dtype)
                grad[rows] = inner * (scale[rows, None] / what.temperature).to(prob.dtype)


def _lots(p: Tensor) -> Iterator[slice]:
    """Yield some rows at a time: what is worked on together stays small."""
    step = max(1, BLOCK // p.shape[-1])
    for start in range(0, len(p), step):
        yield slice(start, start + step)


def _densities(
    p: Tensor, q: Tensor, sums: Tensor, what: Pointwise
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return f ≥ 0, p g_p, q g_q, p and q of every token; where p = 0, p g_p is 0."""
    log_p, log_q, step = log_probs(p, q, sums, what.temperature)
    p_has, q_has = p != -math.inf, q != -math.inf
    step = step.masked_fill(~(p_has | q_has), 0.0)
    p, q = log_p.exp(), log_q.exp()
    if what.kind == "tv":
        apart = torch.where(step.abs() < 1, p * step.clamp(-1, 1).expm1(), q - p)
        side = 0.5 * apart.sign()
        return 0.5 * apart.abs(), -side * p, side * q, p, q
    if what.kind == "skew_forward":
        return *_skewed(p, q, step, what.weight), p, q
    beta = what.weight
    x, y, mixture = _mixed(p, q, step, beta)
    f = beta * _excess(p, x, mixture) + (1 - beta) * _excess(q, y, mixture)
    return f, -beta * _product(p, x), (beta - 1) * _product(q, y), p, q


def _skewed(p: Tensor, q: Tensor, step: Tensor, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the terms of KL(p‖m), m = w p + (1−w) q, and p g_p, q g_q but for constants in g."""
    x, _, mixture = _mixed(p, q, step, weight)
    share = torch.expm1(-x)  # p/m − 1
    there = -_product(p, x) - weight * p * share
    over = torch.where(q == 0, 0.0, q * share)
    return _excess(p, x, mixture), there, (weight - 1) * over


def _mixed(p: Tensor, q: Tensor, step: Tensor, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return log m/p, log m/q and m, with the digits of step = log q/p where that is small."""
    less = torch.log1p((1 - weight) * torch.expm1(step.clamp(max=0.0)))
    more = torch.log1p(weight * torch.expm1(-step.clamp(min=0.0)))
    x = torch.where(step <= 0, less, step + more)
    y = torch.where(step <= 0, less - step, more)
    return x, y, weight * p + (1 - weight) * q


def _excess(p: Tensor, x: Tensor, mixture: Tensor) -> Tensor:
    """Return p (e^x − 1 − x) where m = p e^x: m where p is 0."""
    near = p * log_excess(x.clamp(max=1.0))
    return torch.where(x < 1, near, mixture - p - _product(p, x))


def _product(p: Tensor, x: Tensor) -> Tensor:
    return torch.where(p == 0, 0.0, p * x)
