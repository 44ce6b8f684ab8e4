"""Two distributions that can be sampled and scored: draws, log densities, and KL(p‖q) from them.

Which to use: `kl` where no closed form exists (`log_ratio` when the draws are already made).
`draw_from` draws with a generator, which torch's distributions do not take; `sampler_fault` says
whether a distribution's sampler is known to be wrong. `log_density` is log q(x) for any x: −inf
where q has no mass. torch refuses to score an x outside the support, and where a family was given
probabilities it moves them away from 0 and 1 first: a Bernoulli(0) would score a 1 at −15.9 nats.

`Support` holds what is known of p and q before anything is drawn: +inf, the mean of q/p, infinite
variances. `chosen` selects the estimator, `settled` the value and its error bar.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any

import torch
from torch import Generator, Tensor
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Distribution,
    GeneralizedPareto,
    Independent,
    LKJCholesky,
    MixtureSameFamily,
    Multinomial,
    NegativeBinomial,
    OneHotCategorical,
    Poisson,
)
from torch.nn.functional import logsigmoid

from kullback.core import ArgumentTypeError, Estimate, message, require, require_count, require_type
from kullback.exact import countable, scores_as, supports

from . import limits
from .estimators import Estimator, coefficients
from .log_ratios import LogRatios

__all__ = [
    "Support",
    "checked_draws",
    "draw_from",
    "dtype_of",
    "kl",
    "log_density",
    "sampler_fault",
]


def checked_draws(draws: int, fewest: int = limits.MIN_DRAWS) -> int:
    """Return a number of draws, an integer (`bool` is none) of at least `fewest`.

    >>> checked_draws(1000)
    1000
    >>> checked_draws(2.5)
    Traceback (most recent call last):
        ...
    kullback.core.errors.ArgumentTypeError: draws: expected int; got float. Try: draws=2
    """
    return require_count(draws, "draws", fewest)


def draw_from(p: Distribution, draws: int, *, generator: Generator | None = None) -> Tensor:
    """Draw `[draws, *batch, *event]` with a generator, which torch's distributions do not take.

    Args:
        p: A torch distribution.
        draws: How many, ≥ 0.
        generator: Seeds the draws and advances; torch's own, as in `p.sample`, when None.

    Returns:
        `[draws, *batch, *event]`, without gradient.

    Raises:
        ArgumentTypeError: For draws that are no integer.
        ArgumentValueError: For negative draws, for parameters of a density in half precision, or
            where `sampler_fault` knows that the draws would be wrong.

    Example:
        >>> seeds = (torch.Generator().manual_seed(0) for _ in range(2))
        >>> first, second = (
        ...     draw_from(torch.distributions.Laplace(0.0, 1.0), 3, generator=s) for s in seeds
        ... )
        >>> bool((first == second).all())
        True
    """
    draws = checked_draws(draws, fewest=0)
    half = dtype_of(p) in (torch.float16, torch.bfloat16) and not is_discrete(p)
    require(not half, "p", "float32 or float64 parameters for draws", dtype_of(p), ".float()")
    fault = sampler_fault(p)
    require(fault is None, "p", "a distribution whose sampler is right", fault, _INSTEAD)
    return _drawn(p, draws, generator)


def _drawn(p: Distribution, draws: int, generator: Generator | None) -> Tensor:
    if generator is None:
        return p.sample((draws,))
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return p.sample((draws,))


def sampler_fault(p: Distribution) -> str | None:
    """Say what is wrong with the draws of p, also of one inside it; None when nothing is known.

    torch draws counts by rejection: whether one is accepted is the difference of log-gamma values,
    which for means (binomial: trials) above 2^40 rounds to more than 0.003, and above 2^53 to
    whole nats; above 2^63 a Poisson draw is a negative number.

    torch's `LKJCholesky.sample` in 3 dimensions and more: the square of row i's length left of the
    diagonal must be Beta(½(i − 1), …), and is drawn from Beta(i − 3/2, …). Its `log_prob` is right.
    Reference: Lewandowski, Kurowicka and Joe (2009), section 3.2 (the onion method).

    >>> right, wrong = (torch.distributions.LKJCholesky(n, 1.0) for n in (2, 3))
    >>> sampler_fault(right) is None
    True
    >>> sampler_fault(wrong)
    'LKJCholesky of 3 dimensions, which torch draws from the wrong law'
    """
    if isinstance(p, LKJCholesky):
        size = p.dim
        return f"LKJCholesky of {size} dimensions, {_FAULT}" if size >= 3 else None
    if isinstance(p, Binomial | NegativeBinomial | Poisson):
        count = p.total_count if isinstance(p, Binomial) else p.mean
        most = float(count.max()) if count.numel() else 0.0
        words = (
            f"{type(p).__name__} of {'trials' if isinstance(p, Binomial) else 'mean'} {most:.3g}"
        )
        return f"{words}, {_TOO_LARGE}" if most > limits.MAX_DRAWN_COUNT else None
    parts = [getattr(p, name, None) for name in ("base_dist", "_component_distribution")]
    faults = (sampler_fault(part) for part in parts if isinstance(part, Distribution))
    return next((fault for fault in faults if fault), None)


_FOLDED = "a family of its own, such as HalfNormal for |x| of a Normal"
_BEYOND = "parameters that are farther from the ends of the floating type"
_FAULT = "which torch draws from the wrong law"
_TOO_LARGE = f"above {limits.MAX_DRAWN_COUNT:.3g}, where torch draws from the wrong law"
_INSTEAD = (
    "a closed form (exact.closed_forms); for large counts a Normal of their mean and variance; or "
    "draws of your own"
)


def log_density(q: Distribution, x: Tensor) -> Tensor:
    """Return log q(x), −inf for x outside q's support or where its probability is exactly 0.

    Mixtures and `Independent` are taken apart, so that this holds inside them.

    Args:
        q: A torch distribution.
        x: `[*sample, *batch, *event]`.

    Returns:
        `[*sample, *batch]`, in nats, differentiable where q's own `log_prob` is.

    Example:
        >>> log_density(torch.distributions.Exponential(2.0), torch.tensor([-1.0, 0.0]))
        tensor([  -inf, 0.6931])
        >>> log_density(Bernoulli(0.0), torch.tensor([0.0, 1.0]))
        tensor([0., -inf])
    """
    score = _scored if _scores_as_known(q) else _log_prob
    if score is _scored and isinstance(q, Independent | MixtureSameFamily):
        return score(q, x)
    try:
        inside: Tensor = q.support.check(x)  # type: ignore[union-attr]
    except NotImplementedError:
        return _log_prob(q, x)
    if bool(inside.all()):
        return score(q, x)
    mask = inside.reshape(*inside.shape, *[1] * len(q.event_shape))
    stand_in = _drawn(q, 1, Generator().manual_seed(0))[0]
    fits = bool(q.support.check(stand_in).all())  # type: ignore[union-attr]
    require(fits, "q", "a distribution whose draws lie in its support", "others", _BEYOND)
    return score(q, torch.where(mask, x, stand_in)).masked_fill(~inside, -math.inf)


def _scores_as_known(q: Distribution) -> bool:
    """Say whether q scores as the family of the rule that `_scored` has for it."""
    owner = next((kind for kind in type(q).__mro__ if kind in _scored.registry), object)
    return owner is not object and scores_as(q, owner)


@singledispatch
def _scored(q: Distribution, x: Tensor) -> Tensor:
    return _log_prob(q, x)


def _log_prob(q: Distribution, x: Tensor) -> Tensor:
    """Return `q.log_prob(x)`; torch says nothing where there is none (a map that folds, as |x|)."""
    try:
        return q.log_prob(x)
    except NotImplementedError as error:
        expected = "a distribution with a log density"
        got = f"{type(q).__name__}, for which torch has none"
        raise ArgumentTypeError(message("q", expected, got, _FOLDED)) from error


@_scored.register(Independent)
def _independent(q: Any, x: Tensor) -> Tensor:
    dims = q.reinterpreted_batch_ndims
    scores = log_density(q.base_dist, x)
    return scores.sum(tuple(range(-dims, 0))) if dims else scores


@_scored.register
def _mixture(q: MixtureSameFamily, x: Tensor) -> Tensor:
    axis = -1 - len(q.event_shape)
    parts = log_density(q.component_distribution, x.unsqueeze(axis))
    return torch.logsumexp(parts + _log_masses(q.mixture_distribution), -1)


@_scored.register
def _bernoulli(q: Bernoulli, x: Tensor) -> Tensor:
    return _powers(q, x, 1.0 - x)


@_scored.register(Binomial)
@_scored.register(NegativeBinomial)
@_scored.register(Poisson)
def _counted(q: Any, x: Tensor) -> Tensor:
    """Loader's masses, in float64: differences of log-gamma values of large counts cancel."""
    shape = torch.broadcast_shapes(x.shape, q.batch_shape)  # type: ignore[no-untyped-call]
    rows = x.expand(shape).reshape(-1, *q.batch_shape).movedim(0, -1)
    return countable.log_masses(q, rows).movedim(-1, 0).reshape(shape)


@_scored.register
def _categorical(q: Categorical, x: Tensor) -> Tensor:
    masses = _log_masses(q)
    shape = torch.broadcast_shapes(x.shape, q.batch_shape)  # type: ignore[no-untyped-call]
    return masses.expand((*shape, -1)).gather(-1, x.long().expand(shape)[..., None])[..., 0]


@_scored.register
def _one_hot(q: OneHotCategorical, x: Tensor) -> Tensor:
    return _categorical(q._categorical, x.argmax(-1))


@_scored.register
def _multinomial(q: Multinomial, x: Tensor) -> Tensor:
    ways = torch.lgamma(x.sum(-1) + 1) - torch.lgamma(x + 1).sum(-1)
    return ways + _times(x, _log_masses(q._categorical)).sum(-1)


@_scored.register
def _generalized_pareto(q: GeneralizedPareto, x: Tensor) -> Tensor:
    """`−log σ − (1 + ξ) log(1 + ξ z)/ξ`, z = (x − μ)/σ; torch's own fails in float64."""
    z, shape = (x - q.loc) / q.scale, q.concentration
    tail = torch.log1p(shape * z) / torch.where(shape == 0, 1.0, shape)
    return -q.scale.log() - (1 + shape) * torch.where(shape == 0, z, tail)


def _powers(q: Any, successes: Tensor, failures: Tensor) -> Tensor:
    """Return `log p^successes (1 − p)^failures`."""
    if not _by_probs(q):
        yes, no = logsigmoid(q.logits), logsigmoid(-q.logits)
        return _times(successes, yes) + _times(failures, no)
    yes, no = torch.where(successes == 0, 1.0, q.probs), torch.where(failures == 0, 0.0, q.probs)
    return successes * yes.log() + failures * torch.log1p(-no)


def _times(count: Tensor, log: Tensor) -> Tensor:
    """Return count · log, 0 where the count is 0 even if the log is −inf."""
    return count * torch.where(count == 0, 0.0, log)


def _log_masses(q: Any) -> Tensor:
    masses: Tensor = q.probs.log() if _by_probs(q) else q.logits
    return masses


def _by_probs(q: Any) -> bool:
    """Say whether the family was given probabilities, which hold exact zeros, or logits."""
    return q._param is q.__dict__.get("probs")


HEAVY_RATIO = "as q/p has a heavy tail"


@dataclass(frozen=True, slots=True)
class Support:
    """What supports and tails say about an estimate; tensors `[*batch]`.

    infinite: KL is +inf. centred: the mean M of q/p is known; gap: `M − 1`, 0 where it is not.
    heavy_ratio, heavy_log: the variance of q/p, or of its log, is infinite; heavy_control: the
    fourth moment of q/p is, and λ* is then not known from draws. unresolved: how far a
    mean of log p is off because draws are rounded at the ends of p's support. finite: everywhere
    else KL is known to be finite.
    """

    infinite: Tensor
    centred: Tensor
    gap: Tensor
    heavy_ratio: Tensor
    heavy_control: Tensor
    heavy_log: Tensor
    unresolved: Tensor
    finite: bool

    @classmethod
    def of(cls, p: Distribution, q: Distribution) -> "Support":
        """Ask `exact.supports.compare`; nothing is known of a pair that it does not know.

        >>> from torch.distributions import Normal, Uniform
        >>> Support.of(Uniform(0.0, 1.0), Normal(0.0, 1.0)).gap
        tensor(-0.6587, dtype=torch.float64)
        """
        batch = (torch.empty(p.batch_shape) + torch.empty(q.batch_shape)).shape
        no = torch.zeros(batch, dtype=torch.bool)
        found = supports.compare(p, q)
        if found is None:
            return cls(no, no, no.double(), no, no, no, no.double(), finite=False)
        mean = torch.zeros_like(no, dtype=torch.float64)
        mean = mean if found.ratio_mean is None else found.ratio_mean
        centred = (mean > 0) | found.infinite
        gap = torch.where(centred & ~found.infinite, mean - 1, 0.0)
        return cls(
            infinite=found.infinite,
            centred=centred,
            gap=gap,
            heavy_ratio=found.heavy_ratio,
            heavy_control=found.heavy_control,
            heavy_log=found.heavy_log,
            unresolved=at_ends(p) + no.double(),
            finite=found.decided,
        )

    def check(self, estimator: Estimator) -> None:
        """Refuse k3 and a fixed λ where the mean of q/p is not known."""
        free = estimator in ("k1", "k2", "best") or bool(self.centred.all())
        hint = "estimator='k1', which needs no mean of q/p"
        require(free, "estimator", "k1 where q may have mass outside p's support", estimator, hint)

    def chosen(self, state: LogRatios, estimator: Estimator, *, cross_fit: bool) -> Estimate:
        """Estimate, by k1 in place of "best" where q/p is not fit to be a control."""
        if estimator != "best":
            found = self._averaged(state, estimator, cross_fit=cross_fit)
            with_r = estimator not in ("k1", "k2")
            found = self._without_error(found) if with_r else found
            return replace(found, how=_both(found.how, self._centre() if with_r else ""))
        plain = self.heavy_control | ~self.centred
        if bool(plain.all()):
            why = HEAVY_RATIO if bool(self.heavy_control.any()) else "as q may reach beyond p"
            return replace(self._averaged(state, "k1"), how=f"k1, {why}")
        found = self._averaged(state, "best", cross_fit=cross_fit)
        if bool(plain.any()):
            found = _mixed(plain, self._averaged(state, "k1"), found)
        centre = "" if found.how.startswith("k1,") else self._centre()
        return replace(found, how=_both(found.how, centre))

    def _averaged(
        self, state: LogRatios, estimator: Estimator, *, cross_fit: bool = True
    ) -> Estimate:
        """Average with q/p about its known mean; k1 is tested where the supports are not known."""
        known = self.finite or bool(self.centred.all())  # then k1 is right, whatever the mean is
        if known or estimator not in ("k1", "k2"):
            variance = self._finite_variance(estimator)
            return state.averaged(
                estimator, cross_fit=cross_fit, gap=self.gap, finite_variance=variance
            )
        return state.estimate(estimator)

    def _finite_variance(self, estimator: Estimator) -> Tensor:
        """Say where the terms are known to have a finite variance, `[*batch]`."""
        if not self.finite or estimator == "k2":
            return torch.zeros_like(self.infinite)
        heavy = self.infinite | self.heavy_log
        return ~(heavy if estimator == "k1" else heavy | self.heavy_ratio)

    def settled(self, found: Estimate) -> Estimate:
        """Put +inf where KL is infinite, and take away error bars that have no variance."""
        heavy = self.heavy_log & ~self.infinite
        if bool(heavy.any()):
            words = "the variance of log q/p is infinite, by the tails of p and q"
            found = found.without_error(words, where=_part(heavy))
        found = unless_rounded(found, torch.where(self.infinite, 0.0, self.unresolved))
        found = self._at_ends(found) if self.finite else found
        if not bool(self.infinite.any()):
            return found
        if not self.infinite.dim():
            return Estimate(math.inf, math.inf, found.draws)
        value = torch.where(self.infinite, math.inf, found.value)
        error = torch.where(self.infinite, math.inf, found.standard_error)
        return replace(found, value=value, standard_error=error)

    def _at_ends(self, found: Estimate) -> Estimate:
        """Give no value where draws that were rounded to an end made a finite KL infinite."""
        bad = ~torch.as_tensor(found.value).isfinite() & ~self.infinite
        if not bool(bad.any()):
            return found
        words = "draws of p were rounded to an end of its support, where a density is infinite or 0"
        value = math.nan if not bad.dim() else found.value.masked_fill(bad, math.nan)
        return replace(found, value=value).without_error(words, where=_part(bad))

    def _without_error(self, found: Estimate) -> Estimate:
        heavy, unknown = self.heavy_ratio & ~self.infinite, ~self.centred
        if bool(heavy.any()):
            words = "the variance of q/p is infinite, by the tails of p and q; use k1"
            found = found.without_error(words, where=_part(heavy))
        if bool(unknown.any()):
            words = "the mean of q/p is not known where q may have mass outside p's support; use k1"
            found = found.without_error(words, where=_part(unknown))
        return found

    def _centre(self) -> str:
        """Say at which Q(support of p) the control is centred, where that is not 1."""
        masses = 1 + self.gap[self.gap != 0]
        if not masses.numel():
            return ""
        ends = dict.fromkeys(f"{float(end):.3g}" for end in (masses.amin(), masses.amax()))
        return f"λ centred at Q(supp p) = {' to '.join(ends)}"


def at_ends(p: Distribution, *, bounded: bool = False) -> Tensor:
    """Return by how much rounding of p's draws at its ends may move a mean, `[*batch]`.

    0 where nothing is known; as `exact.supports.unresolved`.

    >>> from torch.distributions import Beta
    >>> bool(at_ends(Beta(torch.tensor(1.0), torch.tensor(0.01))) > 1)
    True
    """
    line, nothing = supports.line_of(p), torch.zeros(p.batch_shape, dtype=torch.float64)
    return nothing + supports.unresolved(line, dtype_of(p), bounded=bounded) if line else nothing


def coarse_draws(x: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Return by how much a mean of scores may be off because draws are rounded, `[*batch]`.

    Rounding to steps of u adds u²/12 to the variance of x, and `(u f')²/24` to the mean of a
    quadratic score f; u f' is the change from one number to the next.

    >>> square = lambda x: 0.5 * (x - 1e7) ** 2
    >>> bool(coarse_draws(torch.tensor([1e7, 1e7 + 2]), square) > 0.05)
    True
    """
    some = x[: limits.DRAWS_FOR_ROUNDING]
    if not some.is_floating_point() or not len(some):
        return torch.zeros(())
    beside = torch.nextafter(some, torch.full_like(some, math.inf))
    change = (score(beside) - score(some)).double()
    return torch.where(change.isfinite(), change, 0.0).square().mean(0) / 12


def unless_rounded(found: Estimate, lost: Tensor, words: str = "") -> Estimate:
    """Take away error bars that rounding of the draws may exceed: `lost` `[*batch]`.

    words: the reason; that draws are rounded at the ends of p's support, if empty.

    >>> print(unless_rounded(Estimate(0.5, 0.1, draws=100), torch.tensor(0.001)))
    0.50 ± 0.10 nats
    """
    rounded = lost > limits.MAX_BIAS_IN_ERRORS * torch.as_tensor(found.standard_error)
    if not bool(rounded.any()):
        return found
    words = words or "draws of p are rounded near an end of its support, where much of log p is"
    return found.without_error(words, where=_part(rounded))


COARSE = (
    "draws are rounded so coarsely that densities change from one number to the next: pass float64"
)


def dtype_of(p: Any) -> torch.dtype:
    """Return the dtype of a distribution's parameters, and so of its draws.

    >>> dtype_of(torch.distributions.Normal(0.0, 1.0))
    torch.float32
    """
    inner = getattr(p, "component_distribution", getattr(p, "base_dist", None))
    if inner is not None:
        return dtype_of(inner)
    held = (getattr(p, name, None) for name in ("_param", *p.arg_constraints))
    floats = [one.dtype for one in held if isinstance(one, Tensor) and one.is_floating_point()]
    return floats[0] if floats else torch.get_default_dtype()


def _part(where: Tensor) -> Tensor | None:
    return where if where.dim() else None


def _both(first: str, second: str) -> str:
    return ", ".join(filter(None, [first, second]))


def _mixed(mask: Tensor, one: Estimate, other: Estimate) -> Estimate:
    """Return one estimate where the mask holds, elsewhere the other; `[*batch]`, not a scalar."""
    both: dict[str, Any] = {}
    for name in ("value", "standard_error", "k_hat", "rounding", "skewness"):
        parts = [torch.as_tensor(getattr(each, name), dtype=torch.float64) for each in (one, other)]
        both[name] = torch.where(mask, parts[0], parts[1])
    how = f"{other.how}, k1 in {int(mask.sum())} of {mask.numel()} pairs, {HEAVY_RATIO}"
    merged = replace(other, **both, how=how, warnings=(), where=None)
    for part, said in ((mask, one), (~mask, other)):
        where = part & torch.as_tensor(said.warned)
        if said.warnings and bool(where.any()):
            merged = merged.warn(*said.warnings, where=where)
    return merged


_NUMBERS = 1 << 20  # held at a time: draws times batch times event


def kl(
    p: Distribution,
    q: Distribution,
    *,
    draws: int = 10_000,
    estimator: Estimator = "best",
    cross_fit: bool = True,
    generator: Generator | None = None,
) -> Estimate:
    """Estimate KL(p‖q) = E_p[log p(x) − log q(x)] from `draws` fresh draws x ~ p.

    Supports and tails decide first (`exact.supports.compare`): where they make KL infinite the
    value is +inf whatever is drawn. Where q has mass outside p's support the mean of r = q/p is M =
    Q(support of p), not 1: the control is centred there, `−log r + λ (r − M)`. Where M is not
    known, or the variance of r infinite, "best" is k1. Draws are made and scored a piece at a time,
    so memory does not grow with `draws`. Reference: MATH 5.

    Args:
        p: A torch distribution.
        q: A torch distribution over the same event shape; batch shapes broadcast.
        draws: How many, ≥ 4.
        estimator: "k1", "k2", "k3", a number λ, or "best", as in `log_ratio`.
        cross_fit: With "best", as in `log_ratio`.
        generator: Where randomness comes from; torch's own, as in `p.sample`, when None.

    Returns:
        An `Estimate` of `[*batch]`, in nats, also where a closed form exists; unbiased with the
        defaults. No gradient flows.

    Raises:
        TypeError: For what is no distribution, or draws that are no integer.
        ValueError: For event shapes that differ, fewer than 4 draws, and k3 or a fixed λ where M is
            not known.

    Example:
        >>> from torch.distributions import Laplace, StudentT
        >>> seed = torch.Generator().manual_seed(0)
        >>> print(kl(StudentT(5.0), Laplace(0.0, 1.0), generator=seed))
        0.01459 ± 0.00021 nats
    """
    for name, given in (("p", p), ("q", q)):
        require_type(given, Distribution, name, "a torch.distributions object")
    same = p.event_shape == q.event_shape
    require(same, "q", f"the event shape of p, {list(p.event_shape)}", list(q.event_shape))
    draws = checked_draws(draws)
    if estimator != "best":
        coefficients(estimator)
    batch = (torch.empty(p.batch_shape) + torch.empty(q.batch_shape)).shape
    p = p if p.batch_shape == batch else p.expand(batch)
    support = Support.of(p, q)
    if bool(support.infinite.all()):
        return support.settled(Estimate(support.infinite.double() * math.inf, math.inf, draws))
    support.check(estimator)
    step = max(4, _NUMBERS // max(1, math.prod(batch) * math.prod(p.event_shape)) // 2 * 2)
    counts = (min(step, draws - start) for start in range(0, draws, step))
    state, lost = None, torch.zeros(())
    for count in counts:
        x = draw_from(p, count, generator=generator)
        log_p, log_q = (log_density(of, x).movedim(0, -1) for of in (p, q))
        piece = LogRatios.of(log_p, log_q.expand_as(log_p))
        if state is None and not is_discrete(p):
            lost = coarse_draws(x, lambda at: log_density(p, at) - log_density(q, at))
        state = piece if state is None else state + piece
    found = support.settled(support.chosen(state, estimator, cross_fit=cross_fit))  # type: ignore[arg-type]
    return unless_rounded(found, torch.where(support.infinite, 0.0, lost), COARSE)


def is_discrete(p: Distribution) -> bool | None:
    """Say whether p's draws are integers or other single points; None where torch does not say.

    >>> is_discrete(Poisson(3.0)), is_discrete(torch.distributions.Normal(0.0, 1.0))
    (True, False)
    """
    try:
        return bool(p.support.is_discrete)  # type: ignore[union-attr]
    except NotImplementedError:
        return None
