"""KL, Jensen-Shannon and mutual information when there are only draws, and no densities at all.

Which to use: `kl_from_draws(x, y)`, `js_from_draws(x, y)` for draws from two distributions,
`mutual_information_from_draws(x, y)` for pairs. `method="neighbours"` (the default) fits any
smooth densities in few dimensions; `method="classifier"` copes with more dimensions and is, in
expectation, a lower bound. Where densities are known, `log_ratio` is better than either.

The error bar of the neighbours comes from subsampling (Politis, Romano and Wolf 1999): the same
statistic on blocks of the draws, whose variance is that of the whole times the number of blocks,
and whose mean differs from the whole by what the bias loses on the way.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid

from kullback.core import Estimate, require, require_type

from . import trust
from .classifier import FOLDS, held_out_log_ratio
from .neighbours import js_neighbours, kl_neighbours, mutual_information_neighbours

__all__ = ["js_from_draws", "kl_from_draws", "mutual_information_from_draws"]

Method = Literal["neighbours", "classifier"]

_FEWEST, _BLOCK, _MOST_BLOCKS, _FREEDOM = 80, 40, 4, 45
_SMOOTH = "neighbourhoods smooth both densities: usually low, more so in many dimensions"
_BOUND = "a lower bound on held-out draws, low by whatever the classifier misses"
_MISSED = "the error bar leaves out what the classifier misses: compare method='neighbours'"


def kl_from_draws(
    x: Tensor,
    y: Tensor,
    *,
    method: Method = "neighbours",
    neighbours: int = 3,
    generator: Generator | None = None,
) -> Estimate:
    """Estimate KL(p‖q) = E_p[log p/q], in nats, from draws alone: x ~ p and y ~ q.

    x: `[n, d]`, y: `[m, d]`, at least 80 draws each, independent and continuous. Never clipped:
    near p = q it scatters around 0. method "neighbours" also takes a batch, `[*batch, n, d]`.
    method: "neighbours" compares distances to the k-th (`neighbours`) neighbour among x and among
    y; its bias is usually low and vanishes slowly in many dimensions. "classifier" fits a logistic
    regression on linear and quadratic terms and averages on held-out draws; low, never high, in
    expectation, whatever p and q are.
    generator: how the draws are dealt into blocks (neighbours) and shuffled (classifier); a fixed
    one when None, so that the same draws give the same answer.

    Approximate: both error bars are asymptotic; `warnings` say when bias rivals them. Disjoint
    supports give a large finite number, not +inf. NaN stays NaN. No gradient flows.
    Errors: `ValueError` for shapes, too few draws, a point repeated more than k times.
    Reference: Wang, Kulkarni and Verdú (2009); Nguyen, Wainwright and Jordan (2010).

    >>> seed = torch.Generator().manual_seed(0)
    >>> x, y = torch.randn(1000, 1, generator=seed), 1 + torch.randn(1000, 1, generator=seed)
    >>> print(kl_from_draws(x, y), "|", kl_from_draws(x, y, method="classifier"))
    ?
    """
    x, y, k = _checked(x, y, method, neighbours)
    if method == "classifier":
        return _bounded(*held_out_log_ratio(*_shuffled(generator, x, y)), kind="kl")
    return _subsampled(lambda a, b: kl_neighbours(a, b, k=k), [[x], [y]], generator)


def js_from_draws(
    x: Tensor,
    y: Tensor,
    *,
    method: Method = "neighbours",
    neighbours: int = 3,
    generator: Generator | None = None,
) -> Estimate:
    """Estimate the Jensen-Shannon divergence `½ KL(p‖m) + ½ KL(q‖m)`, `m = ½(p + q)`, from draws.

    x: `[n, d]` from p, y: `[m, d]` from q; n = m for "neighbours". In nats, at most log 2 but never
    clipped there. Everything else as in `kl_from_draws`.
    Reference: Ross (2014) for the neighbours; MATH 4.3.

    >>> seed = torch.Generator().manual_seed(0)
    >>> x, y = torch.randn(1000, 1, generator=seed), 1 + torch.randn(1000, 1, generator=seed)
    >>> print(js_from_draws(x, y), "|", js_from_draws(x, y, method="classifier"))
    ?
    """
    x, y, k = _checked(x, y, method, neighbours)
    if method == "classifier":
        return _bounded(*held_out_log_ratio(*_shuffled(generator, x, y)), kind="js")
    same = x.shape == y.shape
    hint = "leave some draws out, or method='classifier'"
    require(same, "y", f"as many draws as x, {x.shape[-2]}", y.shape[-2], hint)
    return _subsampled(lambda a, b: js_neighbours(a, b, k=k), [[x], [y]], generator)


def mutual_information_from_draws(
    x: Tensor,
    y: Tensor,
    *,
    method: Method = "neighbours",
    neighbours: int = 3,
    generator: Generator | None = None,
) -> Estimate:
    """Estimate `I(X; Y) = KL(p(x, y) ‖ p(x) p(y))`, in nats, from pairs of draws.

    x: `[n, d]`, y: `[n, e]`: row i of both is one pair; at least 80 pairs, independent, continuous.
    "neighbours" is KSG's first estimator, low under strong dependence; "classifier" tells pairs
    from re-dealt pairs. Everything else as in `kl_from_draws`.
    Reference: Kraskov, Stögbauer and Grassberger (2004).

    >>> seed = torch.Generator().manual_seed(0)
    >>> x, noise = torch.randn(1000, 1, generator=seed), torch.randn(1000, 1, generator=seed)
    >>> print(mutual_information_from_draws(x, x + noise))
    ?
    """
    x, y, k = _checked(x, y, method, neighbours, pairs=True)
    if method == "classifier":
        dealer = _seeded(generator)
        order = torch.randperm(len(x), generator=dealer, device=dealer.device).to(x.device)
        x, y = (z[order[: len(x) // FOLDS * FOLDS]] for z in (x, y))
        joint, split = torch.cat([x, y], 1), torch.cat([x, y.roll(FOLDS, 0)], 1)
        return _bounded(*held_out_log_ratio(joint, split), kind="pairs")
    return _subsampled(
        lambda a, b: mutual_information_neighbours(a, b, k=k), [[x, y]], generator
    )


def _checked(
    x: Tensor, y: Tensor, method: Method, neighbours: int, *, pairs: bool = False
) -> tuple[Tensor, Tensor, int]:
    require(method in ("neighbours", "classifier"), "method", "neighbours or classifier", method)
    for name, points in (("x", x), ("y", y)):
        require_type(points, Tensor, name, "pass a torch tensor [draws, dimensions]")
        single = method == "classifier"
        shape = "[draws, dimensions]" if single else "[*batch, draws, dimensions]"
        fits = points.is_floating_point() and (points.dim() == 2 if single else points.dim() >= 2)
        hint = f"{name}[:, None] for numbers" if points.dim() == 1 else ""
        require(fits, name, f"floating-point {shape}", list(points.shape), hint)
        require(points.shape[-2] >= _FEWEST, name, f"at least {_FEWEST} draws", points.shape[-2])
    same = x.shape[:-1] == y.shape[:-1] if pairs else x.shape[:-2] == y.shape[:-2]
    same = same and (pairs or x.shape[-1] == y.shape[-1])
    require(same, "y", f"a shape that goes with x, {list(x.shape)}", list(y.shape))
    require_type(neighbours, int, "neighbours")
    most = _BLOCK // 2
    require(1 <= neighbours <= most, "neighbours", f"an integer from 1 to {most}", neighbours)
    return x.detach().double(), y.detach().double(), neighbours


def _seeded(generator: Generator | None) -> Generator:
    return torch.Generator().manual_seed(0) if generator is None else generator


def _shuffled(generator: Generator | None, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    dealer = _seeded(generator)
    orders = (torch.randperm(len(z), generator=dealer, device=dealer.device) for z in (x, y))
    return x[next(orders).to(x.device)], y[next(orders).to(y.device)]


def _subsampled(
    statistic: Callable[..., Tensor],
    groups: list[list[Tensor]],
    generator: Generator | None,
) -> Estimate:
    """Give a statistic of samples the error bar of its blocks; a group's samples stay paired."""
    dealer = _seeded(generator)
    draws = min(group[0].shape[-2] for group in groups)
    blocks = min(_MOST_BLOCKS, draws // _BLOCK)
    rounds = -(-_FREEDOM // (blocks - 1))
    dealt = []
    for group in groups:
        count = group[0].shape[-2]
        orders = torch.stack(
            [torch.randperm(count, generator=dealer, device=dealer.device) for _ in range(rounds)]
        )[:, : count // blocks * blocks].to(group[0].device)
        shape = (rounds, blocks, count // blocks)
        dealt += [z[..., orders.flatten(), :].unflatten(-2, shape) for z in group]
    value = statistic(*[z for group in groups for z in group])
    repeated = bool(value.isinf().any() or value.isnan().any())
    finite = all(bool(z.isfinite().all()) for group in groups for z in group)
    hint = "kullback.exact for tables of counts, or method='classifier'"
    require(not (repeated and finite), "x", "distinct points", "one repeated many times", hint)
    parts = statistic(*dealt)
    error = (parts.var(-1).mean(-1) / blocks).sqrt()
    dimensions = sum(z.shape[-1] for z in groups[0])
    left = (parts.mean((-1, -2)) - value) / (blocks ** (1.0 / dimensions) - 1.0)
    words = "the drift from blocks to all draws tells of {:.1f} standard errors of bias: draw more"
    doubts = [trust.about_bias(left, error, words)]
    return trust.judged(value, error, draws, None, doubts, "low", _SMOOTH)


def _bounded(at_x: Tensor, at_y: Tensor, kind: Literal["kl", "js", "pairs"]) -> Estimate:
    """Average the bound that held-out log ratios prove, with its error and its doubts."""
    if kind == "js":
        gains, losses = 0.5 * logsigmoid(at_x) + 0.5 * math.log(2.0), -0.5 * logsigmoid(-at_y)
        losses = losses - 0.5 * math.log(2.0)
    else:
        gains, losses = at_x, at_y.expm1()
    value = gains.mean() - losses.mean()
    error_x, doubts, k_x = trust.mean_of(gains - gains.mean())
    error_y, more, k_y = trust.mean_of(losses - losses.mean())
    error = (error_x**2 + error_y**2).sqrt()
    if kind == "pairs":  # draw i is in gain i, loss i and loss i + _FOLDS
        terms = gains - losses - value
        error = ((terms**2 + 2 * terms * terms.roll(-FOLDS)).mean().clamp_min(0) / len(terms)).sqrt()
    missed = torch.ones_like(value, dtype=torch.bool)
    doubts = [trust.Doubt(value, missed, _MISSED), *doubts, *more]
    draws = min(len(at_x), len(at_y))
    return trust.judged(value, error, draws, torch.maximum(k_x, k_y), doubts, "low", _BOUND)
