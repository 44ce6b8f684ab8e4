"""A density ratio learned by a classifier, and the divergences it proves.

A classifier told apart draws of p and of q; its log odds T estimate log p/q. For *any* T,
`KL(p‖q) ≥ E_p[T] − E_q[e^T] + 1` and `JS ≥ log 2 + ½ E_p[log σ(T)] + ½ E_q[log σ(−T)]`, so with T
fitted on other draws than those averaged, the estimates are biased low and never high, whatever
the laws are: atoms, heavy tails, many dimensions.

|T| is cut at `½ log n`. An event of q that is in none of n draws has a probability of about 3/n at
most; it then changes `E_q[e^T]` by 3/√n at most. No bound from n draws that holds for every law is
above about log n (McAllester and Stratos 2020, theorem 1.1).

Reference: Nguyen, Wainwright and Jordan (2010), "Estimating divergence functionals", eq. 12.

KL, Jensen-Shannon and mutual information when there are only draws, and no densities at all.

Which to use: `kl_from_draws(x, y)`, `js_from_draws(x, y)` for draws from two distributions,
`mutual_information_from_draws(x, y)` for pairs. `method="neighbours"` (the default) fits any
smooth densities in few dimensions; `method="classifier"` copes with more dimensions and any laws,
and gives a lower bound. Where densities are known, `log_ratio` is better than either.

The draws are checked first (`samples`): rows that the samples share, copies of rows, atoms and
columns without spread are refused, rounded columns are dequantised. The neighbours' bias cannot be
computed from draws; where it may rival the error bar the estimate has none (`no_error`).

The error bar of the neighbours comes from subsampling (Politis, Romano and Wolf 1999): the same
statistic on halves (or more blocks) of the draws, dealt many times over; the variance between
blocks is that of the whole times their number. It is widened as Student's law asks for so many.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid, softplus

from kullback.core import Estimate, require, require_type, two_sided

from . import limits
from .error_bars import Doubt
from .nearest_neighbours import (
    extrapolated_kl,
    js_neighbours,
    kl_neighbours,
    lonely,
    mutual_information_neighbours,
)
from .two_sample_checks import Samples, covariance_of, paired_samples, two_samples, whitened

__all__ = [
    "FOLDS",
    "held_out_log_ratio",
    "js_from_draws",
    "kl_from_draws",
    "mutual_information_from_draws",
]

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
        for penalty in limits.RIDGE_PENALTIES:  # large to small: each starts where the last ended
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
    furthest = limits.MAX_STANDARDISED_COORDINATE
    z = whitened(data.points, within, like=points).clamp(-furthest, furthest)
    if quadratic:
        d = z.shape[1]
        crossed = d * (d + 3) // 2 * limits.DRAWS_PER_CROSS_TERM <= len(points)
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
        step = torch.linalg.lstsq(curve, slope[:, None], driver="gelsd").solution[:, 0]
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


Method = Literal["neighbours", "classifier"]

_SMOOTH = "neighbourhoods smooth both densities; low where an x has no y near"
_BALANCED = "neighbourhoods smooth the densities; the sign depends on them"
_DEPENDENT = "low under strong dependence, little either way otherwise"
_BOUND = "a lower bound on held-out draws, low by whatever the classifier misses"
_UNSURE = "the bias of nearest neighbours may exceed it: "
_VACUOUS = "on held-out draws the classifier is worse than none; 0 is the bound that always holds"


def kl_from_draws(
    x: Tensor,
    y: Tensor,
    *,
    method: Method = "neighbours",
    neighbours: int | None = None,
    generator: Generator | None = None,
) -> Estimate:
    """Estimate KL(p‖q) = E_p[log p/q], in nats, from draws alone: x ~ p and y ~ q.

    Args:
        x: `[n, d]`, independent draws from p, at least 80. "neighbours" takes a batch as well,
            `[*batch, n, d]`. No unit and no linear map of the columns matters.
        y: `[m, d]`, independent draws from q.
        method: "neighbours" compares the distances to the k-th neighbour among x and among y, for
            k = 1, 2, …, extrapolated to k = 0, which removes most of the bias of smoothing.
            "classifier" fits a logistic regression on linear and quadratic terms and averages on
            held-out draws: a lower bound in expectation, whatever p and q are.
        neighbours: one k instead, without extrapolation and without an error bar.
        generator: how the draws are dealt into blocks (neighbours) and shuffled (classifier), and
            the noise that undoes rounding; a fixed one when None, so that the same draws give the
            same answer.

    Returns:
        The value, never clipped; near p = q the neighbours' scatters around 0. No error bar
        (`no_error`) in more than 3 dimensions, where neighbouring rows are alike (a chain), where
        many x have hardly any y near, or where the extrapolation moves the value by more than 2.5
        errors. `how` names the columns whose rounding was undone (KL is then of the rounded laws,
        exactly) or that were left out.
        Disjoint supports give a finite number, not +inf. No gradient flows.

    Raises:
        ValueError: for shapes, too few draws, NaN, rows that x and y share or that are copies of
            others, with noise or without, atoms beside a density (neighbours), samples on different
            subspaces, and a value that no KL can have.

    Source: Wang, Kulkarni and Verdú (2009), eq. 14; Moon et al. (2018); for the classifier Nguyen,
    Wainwright and Jordan (2010).

    >>> seed = torch.Generator().manual_seed(0)
    >>> x, y = torch.randn(1000, 1, generator=seed), 0.5 + torch.randn(1000, 1, generator=seed)
    >>> print(kl_from_draws(x, y))
    0.098 ± 0.046 nats, bias unknown
    >>> print(kl_from_draws(x, y, method="classifier"))
    0.122 ± 0.032 nats, biased low
    """
    _arguments(x, y, method, neighbours)
    dealer = _seeded(generator)
    draws = two_samples(x, y, dealer, continuous=method == "neighbours")
    x, y = draws.x, draws.y
    if method == "classifier":
        return _told(_bounded(_shuffled(x, dealer), _shuffled(y, dealer), kind="kl"), draws)
    fewer = min(x.shape[-2], y.shape[-2])
    most = max(limits.MIN_NEIGHBOURS, fewer // limits.DRAWS_PER_NEIGHBOUR)
    most = min(most, limits.MAX_NEIGHBOURS)

    def extrapolated(a: Tensor, b: Tensor) -> Tensor:
        return extrapolated_kl(a, b, most=most)

    def fixed(a: Tensor, b: Tensor) -> Tensor:
        return kl_neighbours(a, b, k=neighbours or most)

    found = _subsampled(fixed if neighbours else extrapolated, [[x], [y]], dealer)
    doubts = [_high_dimension(found, x.shape[-1], limits.MAX_DIMENSIONS_KL), _few(found)]
    if neighbours:
        doubts.append(_fixed_k(found, neighbours))
    else:
        moved = (found.value - fixed(x, y).mean(-1)).abs() / found.error
        words = "the value moves by {:.1f} standard errors as the neighbourhoods shrink"
        unstable = Doubt(moved, moved > limits.MAX_EXTRAPOLATION_ERRORS, words)
        doubts += [_isolated(found, x, y), unstable]
    return _told(_estimate(found, doubts, _SMOOTH, most=math.inf), draws)


def js_from_draws(
    x: Tensor,
    y: Tensor,
    *,
    method: Method = "neighbours",
    neighbours: int = 3,
    generator: Generator | None = None,
) -> Estimate:
    """Estimate the Jensen-Shannon divergence `½ KL(p‖m) + ½ KL(q‖m)`, `m = ½(p + q)`, from draws.

    Source: Ross (2014) for the neighbours; MATH 4.3.

    Args:
        x: `[n, d]`, at least 80 independent draws from p; with "neighbours" also `[*batch, n, d]`.
        y: `[m, d]`, independent draws from q; each sample counts one half whatever n and m.
        method: "neighbours" compares as many draws of each at a time, by their k-th neighbours;
            "classifier" is as in `kl_from_draws`.
        neighbours: k, for the neighbours.
        generator: As in `kl_from_draws`.

    Returns:
        An `Estimate` in nats, from 0 to log 2; a value within chance of that range is not clipped.
        The neighbours have an error bar in one or two dimensions. No gradient flows.

    Raises:
        ValueError: As in `kl_from_draws`; also for a value beyond the range by more than chance.

    Example:
        >>> seed = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(1000, 1, generator=seed), 1 + torch.randn(1000, 1, generator=seed)
        >>> print(js_from_draws(x, y))
        0.119 ± 0.010 nats, bias unknown
        >>> print(js_from_draws(x, y, method="classifier"))
        0.1120 ± 0.0099 nats, biased low
    """
    _arguments(x, y, method, neighbours)
    dealer = _seeded(generator)
    draws = two_samples(x, y, dealer, continuous=method == "neighbours")
    x, y = draws.x, draws.y
    if method == "classifier":
        return _told(_bounded(_shuffled(x, dealer), _shuffled(y, dealer), kind="js"), draws)
    if x.shape[-2] != y.shape[-2]:
        x, y = (_dealt([z], 1, dealer)[0].squeeze(-3) for z in (x, y))
    found = _subsampled(lambda a, b: js_neighbours(a, b, k=neighbours), [[x], [y]], dealer)
    # where no x is near a y the terms are one number; an overlap that has one draw in n is missed
    found = found._replace(error=torch.hypot(found.error, torch.tensor(1.0 / found.draws)))
    doubts = [_high_dimension(found, x.shape[-1], limits.MAX_DIMENSIONS_JS)]
    return _told(_estimate(found, doubts, _BALANCED, most=math.log(2.0)), draws)


def mutual_information_from_draws(
    x: Tensor,
    y: Tensor,
    *,
    method: Method = "neighbours",
    neighbours: int = 3,
    generator: Generator | None = None,
) -> Estimate:
    """Estimate `I(X; Y) = KL(p(x, y) ‖ p(x) p(y))`, in nats, from pairs of draws.

    Source: Kraskov, Stögbauer and Grassberger (2004).

    Args:
        x: `[n, d]`, at least 80 independent draws; with "neighbours" also `[*batch, n, d]`.
        y: `[n, e]`; row i of both is one pair.
        method: "neighbours" is KSG's first estimator, low under strong dependence; "classifier"
            tells pairs from re-dealt pairs, and gives a lower bound in expectation.
        neighbours: k, for the neighbours.
        generator: As in `kl_from_draws`.

    Returns:
        An `Estimate` in nats. The neighbours have an error bar for one column with one, as long as
        the neighbours are near on the scale of the dependence. No gradient flows.

    Raises:
        ValueError: As in `kl_from_draws`.

    Example:
        >>> seed = torch.Generator().manual_seed(0)
        >>> x, noise = torch.randn(1000, 1, generator=seed), torch.randn(1000, 1, generator=seed)
        >>> print(mutual_information_from_draws(x, x + noise))
        0.321 ± 0.035 nats, bias unknown
    """
    _arguments(x, y, method, neighbours, pairs=True)
    dealer = _seeded(generator)
    draws = paired_samples(x, y, dealer, continuous=method == "neighbours")
    x, y = draws.x, draws.y
    if method == "classifier":
        order = torch.randperm(len(x), generator=dealer, device=dealer.device).to(x.device)
        x, y = (z[order[: len(x) // FOLDS * FOLDS]] for z in (x, y))
        joint, split = torch.cat([x, y], 1), torch.cat([x, y.roll(FOLDS, 0)], 1)
        return _told(_bounded(joint, split, kind="pairs"), draws)
    found = _subsampled(
        lambda a, b: mutual_information_neighbours(a, b, k=neighbours), [[x, y]], dealer
    )
    dimensions = x.shape[-1] + y.shape[-1]
    crowded = neighbours * found.value.clamp_min(0.0).exp()  # on a ridge of width exp(−I)
    width = (crowded / x.shape[-2]) ** (1.0 / dimensions)
    words = "the nearest neighbours are not near ({:.2f} of the width of the dependence, above 0.2)"
    doubts = [
        _high_dimension(found, dimensions, limits.MAX_DIMENSIONS_MI),
        Doubt(width, width > limits.MAX_NEIGHBOUR_WIDTH, words),
    ]
    return _told(_estimate(found, doubts, _DEPENDENT, most=math.inf), draws)


def _arguments(
    x: Tensor, y: Tensor, method: Method, neighbours: int | None, *, pairs: bool = False
) -> None:
    require(method in ("neighbours", "classifier"), "method", "neighbours or classifier", method)
    fewest = limits.MIN_DRAWS_TWO_SAMPLE
    for name, points in (("x", x), ("y", y)):
        require_type(points, Tensor, name, "pass a torch tensor [draws, dimensions]")
        single = method == "classifier"
        shape = "[draws, dimensions]" if single else "[*batch, draws, dimensions]"
        fits = points.is_floating_point() and (points.dim() == 2 if single else points.dim() >= 2)
        hint = f"{name}[:, None] for numbers" if points.dim() == 1 else ""
        hint = hint or (f"{name}.double()" if not points.is_floating_point() else "")
        got = f"{str(points.dtype).removeprefix('torch.')} {list(points.shape)}"
        require(fits, name, f"floating-point {shape}", got, hint)
        require(points.shape[-2] >= fewest, name, f"at least {fewest} draws", points.shape[-2])
        require(points.shape[-1] >= 1, name, "at least one column", points.shape[-1])
    same = x.shape[:-1] == y.shape[:-1] if pairs else x.shape[:-2] == y.shape[:-2]
    same = same and (pairs or x.shape[-1] == y.shape[-1])
    require(same, "y", f"a shape that goes with x, {list(x.shape)}", list(y.shape))
    if neighbours is not None:
        require_type(neighbours, int, "neighbours")
        most = fewest // 4
        require(1 <= neighbours <= most, "neighbours", f"an integer from 1 to {most}", neighbours)


def _seeded(generator: Generator | None) -> Generator:
    return torch.Generator().manual_seed(0) if generator is None else generator


def _shuffled(x: Tensor, dealer: Generator) -> Tensor:
    return x[torch.randperm(len(x), generator=dealer, device=dealer.device).to(x.device)]


class _Found(NamedTuple):
    """Mean of the terms of the whole and its error, `[*batch]`, and the draws."""

    value: Tensor
    error: Tensor
    draws: int


def _subsampled(
    statistic: Callable[..., Tensor], groups: list[list[Tensor]], dealer: Generator
) -> _Found:
    """Give a statistic of samples the error bar of its blocks; a group's samples stay paired."""
    samples = [z for group in groups for z in group]
    value = statistic(*samples).mean(-1)
    draws = min(group[0].shape[-2] for group in groups)
    blocks = min(limits.MAX_BLOCKS, max(2, draws // limits.DRAWS_PER_BLOCK))
    rounds = -(-limits.MIN_SUBSAMPLES // (blocks - 1))
    squares = torch.zeros_like(value)
    for _ in range(rounds):
        dealt = [z for group in groups for z in _dealt(group, blocks, dealer)]
        squares = squares + statistic(*dealt).mean(-1).var(-1) / (blocks * rounds)
    freedom = rounds * (blocks - 1)  # the error is itself known no better than that: Student's law
    wider = two_sided(0.95, freedom) / two_sided(0.95, draws - 1)
    return _Found(value, wider * squares.sqrt(), draws)


def _dealt(group: list[Tensor], blocks: int, dealer: Generator) -> list[Tensor]:
    """Deal samples `[*batch, n, d]` into `[*batch, blocks, n // blocks, d]`, all in one order."""
    count = group[0].shape[-2]
    order = torch.randperm(count, generator=dealer, device=dealer.device)
    order = order[: count // blocks * blocks].reshape(blocks, -1).to(group[0].device)
    return [z[..., order, :] for z in group]


def _high_dimension(found: _Found, dimensions: int, most: int) -> Doubt:
    words = f"{{:.0f}} dimensions, above {most}; method='classifier' gives a lower bound"
    size = torch.full_like(found.value, dimensions)
    return Doubt(size, size > most, words)


def _few(found: _Found) -> Doubt:
    few = torch.full_like(found.value, found.draws)
    words = f"{{:.0f}} draws, below {limits.MIN_DRAWS_FOR_ISOLATED_SHARE}"
    return Doubt(few, few < limits.MIN_DRAWS_FOR_ISOLATED_SHARE, words)


def _fixed_k(found: _Found, k: int) -> Doubt:
    size = torch.full_like(found.value, k)
    return Doubt(size, size > 0, "one k, {:.0f}, does not show it; leave out `neighbours`")


def _isolated(found: _Found, x: Tensor, y: Tensor) -> Doubt:
    alone = lonely(x, y, k=3)
    words = "{:.1%} of the x have hardly any y near, and p/q is unknown there"
    return Doubt(alone, alone > limits.MAX_ISOLATED_SHARE, words)


def _estimate(found: _Found, doubts: list[Doubt], why: str, *, most: float) -> Estimate:
    """Write the `Estimate`, without an error bar where a doubt applies.

    Raises: `ValueError` where the value is beyond chance outside 0 … most.
    """
    slack = limits.MAX_ERRORS_OUT_OF_RANGE * found.error
    excess = torch.maximum(-found.value, found.value - most) - slack
    worst = float(found.value.flatten()[excess.argmax()])
    got = f"{worst:.3g} nats, from neighbours that are not near"
    possible = not bool((excess > 0).any())
    require(possible, "x, y", f"draws that give 0 to {most:.3g} nats", got, "method='classifier'")
    single = found.value.dim() == 0
    value, error = (float(z) if single else z for z in (found.value, found.error))
    estimate = Estimate(value, error, found.draws, bias="unknown", why=why)
    for doubt in doubts:
        if bool(doubt.where.any()):
            size = doubt.size[doubt.where].max().item()
            where = None if single else doubt.where
            words = doubt.words.format(size)
            words = words if estimate.no_error else _UNSURE + words
            estimate = estimate.without_error(words, where=where)
    return estimate


def _told(estimate: Estimate, draws: Samples) -> Estimate:
    told = replace(estimate, how="; ".join(filter(None, (estimate.how, *draws.notes))))
    return told.without_error(draws.chain) if draws.chain else told


def _bounded(x: Tensor, y: Tensor, *, kind: Literal["kl", "js", "pairs"]) -> Estimate:
    """Average the bound that held-out log ratios prove, with its error.

    The error has a part for events that were not drawn, of a probability of 1/n or so: the largest
    change that one draw makes.
    """
    at_x, at_y = held_out_log_ratio(x, y)
    if kind == "js":
        gains, losses = 0.5 * logsigmoid(at_x) + 0.5 * math.log(2.0), -0.5 * logsigmoid(-at_y)
        losses = losses - 0.5 * math.log(2.0)
    else:
        gains, losses = at_x, at_y.expm1()
    value = gains.mean() - losses.mean()
    error = (gains.var() / len(gains) + losses.var() / len(losses)).sqrt()
    if kind == "pairs":  # draw i is in gain i, loss i and loss i + FOLDS
        terms = gains - losses - value
        error = (terms**2 + 2 * terms * terms.roll(-FOLDS)).mean().clamp_min(0) / len(terms)
        error = error.sqrt()
    largest = torch.cat([at_x, at_y]).max()
    worst = 0.5 * softplus(largest) if kind == "js" else largest.expm1()
    missed = torch.hypot((gains.max() - gains.min()) / len(gains), worst / len(losses))
    error = torch.hypot(error, missed)
    draws = min(len(at_x), len(at_y))
    found = Estimate(float(value), float(error), draws, bias="low", why=_BOUND)
    if found.interval()[1] < 0:
        return replace(found, value=0.0).without_error(_VACUOUS)
    return found
