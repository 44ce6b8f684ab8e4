"""KL, Jensen-Shannon and mutual information when there are only draws, and no densities at all.

Which to use: `kl_from_draws(x, y)`, `js_from_draws(x, y)` for draws from two distributions,
`mutual_information_from_draws(x, y)` for pairs. `method="neighbours"` (the default) fits any
smooth densities in few dimensions; `method="classifier"` copes with more dimensions and is, in
expectation, a lower bound. Where densities are known, `log_ratio` is better than either.

The error bar of the neighbours comes from subsampling (Politis, Romano and Wolf 1999): the same
statistic on halves (or more blocks) of the draws, dealt many times over; the variance between
blocks is that of the whole times their number. It is widened as Student's law asks for so many.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid

from kullback.core import Estimate, require, require_type
from kullback.core.estimate import Bias
from kullback.core.student import two_sided

from . import trust
from .classifier import FOLDS, held_out_log_ratio
from .neighbours import js_neighbours, kl_neighbours, lonely, mutual_information_neighbours

__all__ = ["js_from_draws", "kl_from_draws", "mutual_information_from_draws"]

Method = Literal["neighbours", "classifier"]

_FEWEST, _BLOCK, _MOST_BLOCKS, _FREEDOM = 80, 500, 10, 32
_WIDE, _THIN, _THIN_KL = 0.2, 200, 300  # KL lives in the tails, where x meet no y: 300
_SMOOTH = "neighbourhoods smooth both densities, which draws them together; none at p = q"
_BALANCED = "neighbourhoods smooth the densities; the sign depends on them"
_DEPENDENT = "low under strong dependence, little either way otherwise"
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

    x: `[n, d]`, y: `[m, d]`, at least 80 draws each, independent and continuous; columns are
    brought to one scale first. Never clipped: near p = q it scatters around 0. "neighbours" takes
    a batch as well, `[*batch, n, d]`.
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
    >>> print(kl_from_draws(x, y))
    0.494 ± 0.059 nats, biased low
      warning: 23.0% of the x have hardly any y in reach: the density ratio is cut off there
    >>> print(kl_from_draws(x, y, method="classifier").brief)
    0.466 ± 0.091 nats, biased low
    """
    x, y, k = _checked(x, y, method, neighbours)
    if method == "classifier":
        return _bounded(*held_out_log_ratio(*_shuffled(generator, x, y)), kind="kl")
    found = _subsampled(lambda a, b: kl_neighbours(a, b, k=k), [[x], [y]], generator)
    alone = lonely(x, y, k=k)
    words = "{:.1%} of the x have hardly any y in reach: the density ratio is cut off there"
    doubts = [
        trust.Doubt(alone, alone > 0, words),
        *_wide(_fewer(x, y), x.shape[-1], k, thin=_THIN_KL),
    ]
    return _estimate(found, doubts, "low", _SMOOTH)


def js_from_draws(
    x: Tensor,
    y: Tensor,
    *,
    method: Method = "neighbours",
    neighbours: int = 3,
    generator: Generator | None = None,
) -> Estimate:
    """Estimate the Jensen-Shannon divergence `½ KL(p‖m) + ½ KL(q‖m)`, `m = ½(p + q)`, from draws.

    x: `[n, d]` from p, y: `[m, d]` from q, each counting one half whatever n and m; "neighbours"
    compares as many of each at a time. In nats, at most log 2 but never clipped there. Everything
    else as in `kl_from_draws`.
    Reference: Ross (2014) for the neighbours; MATH 4.3.

    >>> seed = torch.Generator().manual_seed(0)
    >>> x, y = torch.randn(1000, 1, generator=seed), 1 + torch.randn(1000, 1, generator=seed)
    >>> print(js_from_draws(x, y))
    0.119 ± 0.010 nats, bias unknown
    >>> print(js_from_draws(x, y, method="classifier"))
    0.1118 ± 0.0098 nats, biased low
      warning: the error bar leaves out what the classifier misses: compare method='neighbours'
    """
    x, y, k = _checked(x, y, method, neighbours)
    if method == "classifier":
        return _bounded(*held_out_log_ratio(*_shuffled(generator, x, y)), kind="js")
    dealer = _seeded(generator)
    if x.shape[-2] != y.shape[-2]:
        x, y = (_dealt([z], 1, dealer)[0].squeeze(-3) for z in (x, y))
    found = _subsampled(lambda a, b: js_neighbours(a, b, k=k), [[x], [y]], dealer)
    return _estimate(found, _wide(_fewer(x, y), x.shape[-1], k), "unknown", _BALANCED)


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
    0.321 ± 0.035 nats, bias unknown
    """
    x, y, k = _checked(x, y, method, neighbours, pairs=True)
    if method == "classifier":
        dealer = _seeded(generator)
        order = torch.randperm(len(x), generator=dealer, device=dealer.device).to(x.device)
        x, y = (z[order[: len(x) // FOLDS * FOLDS]] for z in (x, y))
        joint, split = torch.cat([x, y], 1), torch.cat([x, y.roll(FOLDS, 0)], 1)
        return _bounded(*held_out_log_ratio(joint, split), kind="pairs")
    found = _subsampled(lambda a, b: mutual_information_neighbours(a, b, k=k), [[x, y]], generator)
    crowded = k * found.terms.mean(-1).clamp_min(0.0).exp()  # on a ridge of width exp(−I)
    doubts = _wide(x.shape[-2], x.shape[-1] + y.shape[-1], crowded)
    return _estimate(found, doubts, "unknown", _DEPENDENT)


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
    most = _FEWEST // 4
    require(1 <= neighbours <= most, "neighbours", f"an integer from 1 to {most}", neighbours)
    x, y = x.detach().double(), y.detach().double()
    if pairs:
        return x / _scale(x), y / _scale(y), neighbours
    scale = _scale(torch.cat([x, y], -2))
    return x / scale, y / scale, neighbours


def _scale(points: Tensor) -> Tensor:
    """Return each column's standard deviation, so that no unit of measurement matters."""
    spread = points.std(-2, keepdim=True)
    return torch.where(spread > 0, spread, 1.0)


def _seeded(generator: Generator | None) -> Generator:
    return torch.Generator().manual_seed(0) if generator is None else generator


def _shuffled(generator: Generator | None, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    dealer = _seeded(generator)
    orders = (torch.randperm(len(z), generator=dealer, device=dealer.device) for z in (x, y))
    return x[next(orders).to(x.device)], y[next(orders).to(y.device)]


class _Found(NamedTuple):
    """Terms of the whole `[*batch, points]`, the error of their mean, and the draws."""

    terms: Tensor
    error: Tensor
    draws: int


def _subsampled(
    statistic: Callable[..., Tensor], groups: list[list[Tensor]], generator: Generator | None
) -> _Found:
    """Give a statistic of samples the error bar of its blocks; a group's samples stay paired."""
    samples = [z for group in groups for z in group]
    terms = statistic(*samples)
    for z in samples:
        terms = terms + 0.0 * z.sum((-2, -1))[..., None]  # NaN among the draws is NaN in the result
    finite = all(bool(z.isfinite().all()) for z in samples)
    hint = "kullback.exact for tables of counts, or method='classifier'"
    regular = not finite or bool(terms.isfinite().all())
    require(regular, "x", "distinct points", "one repeated many times", hint)
    draws = min(group[0].shape[-2] for group in groups)
    blocks = min(_MOST_BLOCKS, max(2, draws // _BLOCK))
    rounds = -(-_FREEDOM // (blocks - 1))
    squares = torch.zeros_like(terms[..., 0])
    dealer = _seeded(generator)
    for _ in range(rounds):
        dealt = [z for group in groups for z in _dealt(group, blocks, dealer)]
        squares = squares + statistic(*dealt).mean(-1).var(-1) / (blocks * rounds)
    freedom = rounds * (blocks - 1)  # the error is itself known no better than that: Student's law
    wider = two_sided(0.95, freedom) / two_sided(0.95, draws - 1)
    return _Found(terms, wider * squares.sqrt(), draws)


def _dealt(group: list[Tensor], blocks: int, dealer: Generator) -> list[Tensor]:
    """Deal samples `[*batch, n, d]` into `[*batch, blocks, n // blocks, d]`, all in one order."""
    count = group[0].shape[-2]
    order = torch.randperm(count, generator=dealer, device=dealer.device)
    order = order[: count // blocks * blocks].reshape(blocks, -1).to(group[0].device)
    return [z[..., order, :] for z in group]


def _fewer(x: Tensor, y: Tensor) -> int:
    return min(x.shape[-2], y.shape[-2])


def _wide(
    draws: int, dimensions: int, k: float | Tensor, *, thin: int = _THIN
) -> list[trust.Doubt]:
    """Doubt few draws, and neighbourhoods whose width, `(k/n)^(1/d)` of the spread, is large."""
    width = (torch.as_tensor(k, dtype=torch.float64) / draws) ** (1.0 / dimensions)
    words = (
        f"in {dimensions} dimensions the nearest neighbours are not near "
        "({:.2f} of the spread, above 0.2): a bias beyond the error bar is likely"
    )
    few = torch.tensor(float(draws), dtype=torch.float64)
    too_few = "{:.0f} draws are too few for their halves to show the error of the whole"
    return [trust.Doubt(width, width > _WIDE, words), trust.Doubt(few, few < thin, too_few)]


def _estimate(found: _Found, doubts: list[trust.Doubt], bias: Bias, why: str) -> Estimate:
    value = found.terms.mean(-1)
    _, more, k_hat = trust.mean_of(found.terms - value[..., None], value)
    return trust.judged(value, found.error, found.draws, k_hat, [*doubts, *more], bias, why)


def _bounded(at_x: Tensor, at_y: Tensor, kind: Literal["kl", "js", "pairs"]) -> Estimate:
    """Average the bound that held-out log ratios prove, with its error and its doubts."""
    if kind == "js":
        gains, losses = 0.5 * logsigmoid(at_x) + 0.5 * math.log(2.0), -0.5 * logsigmoid(-at_y)
        losses = losses - 0.5 * math.log(2.0)
    else:
        gains, losses = at_x, at_y.expm1()
    value = gains.mean() - losses.mean()
    error_x, doubts, k_x = trust.mean_of(gains - gains.mean(), gains.mean())
    error_y, more, k_y = trust.mean_of(losses - losses.mean(), losses.mean())
    error = (error_x**2 + error_y**2).sqrt()
    if kind == "pairs":  # draw i is in gain i, loss i and loss i + _FOLDS
        terms = gains - losses - value
        error = (
            (terms**2 + 2 * terms * terms.roll(-FOLDS)).mean().clamp_min(0) / len(terms)
        ).sqrt()
    missed = torch.ones_like(value, dtype=torch.bool)
    doubts = [trust.Doubt(value, missed, _MISSED), *doubts, *more]
    draws = min(len(at_x), len(at_y))
    return trust.judged(value, error, draws, torch.maximum(k_x, k_y), doubts, "low", _BOUND)
