"""What is known about a fit, as one record: `Evidence`. A verdict is a function of it alone.

Which to use: `gather`, through `diagnose`; then `judge` for bounds, level and words. Nothing here
decides anything, so stored evidence can be judged anew with other limits
(`benchmarks/verdicts.py --ablation`).

Two corrections of the moments that fail in different ways stand behind it. `by_weights` reweighs
the draws by p/q. It is consistent for any function and knows its own error, but only as far as the
weights' tail lets it. `by_scores` compares the gradients of log p and log q: to first order p is q
tilted by a quadratic, and that tilt moves the draws by an affine map. It is exact between
Gaussians, however far apart, and its residual says how far from Gaussian the ratio p/q is. Neither
meets mass of p where q has no draws; `missed_modes` and `defensive_sampling` look there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kullback.core import describe, require
from kullback.sampled import effective_sample_size, pareto_k
from kullback.variational import limits
from kullback.variational.families.family import Frame

from .missed_modes import Probed

__all__ = [
    "Evidence",
    "Moved",
    "Pool",
    "Sample",
    "Shift",
    "by_scores",
    "by_weights",
    "gather",
    "shift_between",
    "spread",
    "tail_ratio",
]


class Shift(NamedTuple):
    """How far p's moments lie from those of the draws, each `[m]`, for m functions of z.

    mean: (mean under p − mean of the draws) / sd of the draws. log_sd: log(sd under p / sd of the
    draws). mean_error, log_sd_error: their standard errors, the draws' own scatter included.
    """

    mean: Tensor
    mean_error: Tensor
    log_sd: Tensor
    log_sd_error: Tensor


class Moved(NamedTuple):
    """Draws `[n, d]` moved to where a quadratic tilt of q would put them, and what it misses.

    residual: root mean square, in the worst direction and whitened, of the score difference that
    is not linear in z: 0 when p/q is Gaussian. bounded: False when the tilt has no finite mass; the
    draws are then where they were.
    """

    draws: Tensor
    residual: float
    bounded: bool


def by_weights(values: Tensor, log_weights: Tensor, *, against: Tensor | None = None) -> Shift:
    """Return the shift of self-normalised importance sampling with its error (delta method).

    values: `[n, m]`, functions of the draws; log_weights: `[n]`, unnormalised, some above −inf.
    against: `[k, m]`, the draws from whose moments the shift is counted; by default values.
    Functions that do not vary have shift 0 ± 0. Reference: Owen (2013), "Monte Carlo theory,
    methods and examples", eq. 9.9.

    >>> z = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    >>> by_weights(z, z[:, 0] * 0).mean
    tensor([0.], dtype=torch.float64)
    """
    share = torch.softmax(log_weights, 0)[:, None]
    against = values if against is None else against
    standard = _standardised(values, against)
    mean = (share * standard).sum(0)
    about = standard - mean
    variance = (share * about**2).sum(0)
    mean_error = (share * about).square().sum(0).sqrt()
    tilt = about**2 / variance.clamp_min(1e-300) - 1.0
    spread_error = 0.5 * (share * tilt).square().sum(0).sqrt()
    flat = against.std(0) == 0
    log_sd = torch.where(flat, 0.0, 0.5 * variance.log())
    return Shift(mean, mean_error, log_sd, torch.where(flat, 0.0, spread_error))


def by_scores(draws: Tensor, difference: Tensor, shares: Tensor) -> Moved:
    """Move the draws by the quadratic tilt that best explains `∇log p − ∇log q` at them.

    draws, difference: `[n, d]`, n > 2 d; shares: `[n]`, weights of sum 1. With u the whitened draws
    (u = L⁻¹(z − mean), covariance LLᵀ) and g = Lᵀ difference, least squares g ≈ b + B u gives
    p ∝ q·exp(b·u + ½ uᵀBu), hence mean (I − B)⁻¹b and covariance (I − B)⁻¹ in units of u when q is
    Gaussian, and to first order when it is not; the map between is the optimal transport
    of one Gaussian to the other. The residual is the smaller of its means under q and, reweighed,
    under p: where p has no mass its slope does not matter.

    >>> z = torch.linspace(-2, 2, 101, dtype=torch.float64)[:, None]
    >>> moved = by_scores(z, torch.full_like(z, 0.5) / z.var(), torch.full((101,), 1 / 101))
    >>> round(float(moved.draws.mean()), 6), moved.residual < 1e-9
    (0.5, True)
    """
    dims = draws.shape[1]
    frame = Frame.of_draws(draws)
    white, push = frame.inwards(draws), difference @ frame.factor
    shift = push.mean(0)
    linear = (push - shift).mT @ white / (len(draws) - 1)
    left = push - shift - white @ linear.mT
    both = (left.mT @ left / len(left), (shares[:, None] * left).mT @ left)
    residual = math.sqrt(min(float(torch.linalg.eigvalsh(each)[-1].clamp_min(0)) for each in both))
    identity = torch.eye(dims, dtype=draws.dtype)
    values, vectors = torch.linalg.eigh(identity - 0.5 * (linear + linear.mT))
    if float(values.min()) <= 0:
        return Moved(draws, residual, bounded=False)
    stretch = vectors @ torch.diag(values**-0.5) @ vectors.mT
    target = vectors @ ((vectors.mT @ shift) / values)
    return Moved(frame.outwards(white @ stretch + target), residual, bounded=True)


def shift_between(values: Tensor, moved: Tensor) -> Shift:
    """Return the shift from values `[n, m]` to the same functions of moved draws, `[n, m]`.

    The errors are those of means and standard deviations of n independent draws.

    >>> z = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    >>> shift_between(z, 2 * z + 1).mean
    tensor([1.], dtype=torch.float64)
    """
    scale = values.std(0)
    flat = scale == 0
    safe = torch.where(flat, 1.0, scale)
    ratio = torch.where(flat, 1.0, moved.std(0) / safe)
    standard = _standardised(values, values)
    heavy = (standard**4).mean(0).sub(1.0).clamp_min(0.0).sqrt()
    root = math.sqrt(len(values))
    mean = torch.where(flat, 0.0, (moved.mean(0) - values.mean(0)) / safe)
    return Shift(mean, ratio / root, ratio.log(), torch.where(flat, 0.0, 0.5 * heavy / root))


def tail_ratio(values: Tensor, log_weights: Tensor, against: Tensor, *, share: float) -> Tensor:
    """Return how many times the mass p has in a tail of q, the worse of the two tails, `[m]`.

    values: `[k, m]`, functions of draws with log weights `[k]` towards p; against: `[n, m]`, the
    same of q's draws. A tail is beyond q's quantile of that share, at either end; 1 is what it
    should be, and below 1 p has less there than q.

    >>> z = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    >>> tail_ratio(z, z[:, 0] * 0, z, share=0.1)
    tensor([1.], dtype=torch.float64)
    """
    weight = torch.softmax(log_weights, 0)[:, None]
    ends = torch.quantile(against, torch.tensor([share, 1 - share], dtype=against.dtype), dim=0)
    low = (weight * (values < ends[0])).sum(0) / (against < ends[0]).double().mean(0)
    high = (weight * (values > ends[1])).sum(0) / (against > ends[1]).double().mean(0)
    both = torch.stack([low, high]).nan_to_num(1.0)
    worse: Tensor = both.gather(0, both.log().abs().argmax(0, keepdim=True))[0]
    return worse


def _standardised(values: Tensor, against: Tensor) -> Tensor:
    scale = against.std(0, correction=0)
    return (values - against.mean(0)) / torch.where(scale == 0, 1.0, scale)


class Pool(NamedTuple):
    """Draws of q and of wider proposals `[k, d]`, and their log weights `[k]` towards p, nats."""

    draws: Tensor
    log_weights: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Draws of q `[n, d]`, log p and log q there `[n]` in nats, and what belongs to them.

    scores: the gradients of both, `[n, d]` each, or None. of: the functions whose moments are
    judged, `[n, d]` to `[n, m]`; z itself where None. names: of these functions, or none.
    converged: whether the fitter thought it was done.
    """

    draws: Tensor
    log_p: Tensor
    log_q: Tensor
    scores: tuple[Tensor, Tensor] | None = None
    of: Callable[[Tensor], Tensor] | None = None
    names: tuple[str, ...] = ()
    converged: bool = True

    @property
    def log_weights(self) -> Tensor:
        """`log p − log q`, `[n]`, nats."""
        return self.log_p - self.log_q

    @property
    def broken(self) -> int:
        """How many draws have a log p of NaN or +inf."""
        logs = self.log_weights
        return int((logs.isnan() | (logs == math.inf)).sum())

    @property
    def empty(self) -> int:
        """How many draws lie where p has no mass."""
        return int((self.log_weights == -math.inf).sum())

    def values(self, draws: Tensor) -> Tensor:
        """Return the functions at draws `[k, d]`, `[k, m]`."""
        values = draws if self.of is None else self.of(draws).detach().double()
        good = values.ndim == 2 and len(values) == len(draws)
        require(good, "of", f"to return [{len(draws)}, m]", describe(values))
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that bounds and verdict depend on, for m functions of z.

    draws: n, of q; broken, empty: draws with log p NaN or +inf, and −inf. k_hat, ess_fraction,
    sd_log_weights: of q's own weights. own: the shift of the moments by q's weights. pooled: the
    same by pooled draws of q and of wider proposals; None without. residual, pushed: of the scores,
    None without them or, for `pushed`, where their tilt has no mass. scored: whether there are
    scores.
    tails: see `tail_ratio`. elsewhere, away: share of p's mass on a missed peak and `[m]` its
    distance from q's mean, in sd of q. unreached: p's mass where q has less than a hundredth of its
    density, 0 without wider proposals. endless: whether p's marginal does not decay along a
    coordinate that was followed. tail_index: `[m]`, see `tail_index`; inf where nothing was
    found, None where nothing was asked. names, converged: see `Sample`.
    """

    draws: int
    broken: int
    empty: int
    k_hat: float
    ess_fraction: float
    sd_log_weights: float
    own: Shift
    pooled: Shift | None = None
    scored: bool = False
    residual: float | None = None
    pushed: Shift | None = None
    tails: Tensor | None = None
    elsewhere: float = 0.0
    away: Tensor | None = None
    unreached: float = 0.0
    endless: bool = False
    tail_index: Tensor | None = None
    names: tuple[str, ...]
    converged: bool

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, from which `from_dict` makes the record again."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> "Evidence":
        """Make the record that `to_dict` wrote down."""
        return cls(**{f.name: _read(f.name, kept[f.name]) for f in fields(cls) if f.name in kept})


_SHIFTS = ("own", "pooled", "pushed")
_TENSORS = ("tails", "away", "tail_index")


def gather(
    sample: Sample,
    *,
    pool: Pool | None = None,
    probed: Probed | None = None,
    missing: float = 0.0,
    endless: bool = False,
    tail_index: Tensor | None = None,
) -> Evidence:
    """Compute the evidence from draws of q, from pooled draws, and from what was found elsewhere.

    pool: draws of q and of wider proposals `[k, d]`, and their log weights `[k]` (see `pooled`).
    missing: what `unreached` found. endless: what `Ridge.endless` says of any.
    tail_index: `[d]`, that of z.

    >>> z = torch.linspace(-2, 2, 401, dtype=torch.float64)[:, None]
    >>> sample = Sample(draws=z, log_p=0.1 * z[:, 0], log_q=0 * z[:, 0])
    >>> round(float(gather(sample).own.mean), 2)
    0.12
    """
    values, logs = sample.values(sample.draws), sample.log_weights
    if sample.broken or sample.empty == len(logs):
        return _nothing(sample, values.shape[1])
    effective = float(effective_sample_size(logs))
    moved = _moved(sample, logs)
    pushed, pooled, tails = None, None, None
    if moved is not None and moved.bounded:
        pushed = shift_between(values, sample.values(moved.draws))
    if pool is not None:
        at_pool = sample.values(pool.draws)
        pooled = by_weights(at_pool, pool.log_weights, against=values)
        tails = tail_ratio(at_pool, pool.log_weights, values, share=limits.TAIL_PROBABILITY)
    return Evidence(
        draws=len(logs),
        broken=0,
        empty=sample.empty,
        k_hat=float(pareto_k(logs)),
        ess_fraction=effective / len(logs),
        sd_log_weights=spread(logs),
        own=by_weights(values, logs),
        scored=moved is not None,
        residual=None if moved is None else moved.residual,
        pushed=pushed,
        elsewhere=0.0 if probed is None else probed.share,
        away=_away(sample, values, probed),
        unreached=missing,
        endless=endless,
        tail_index=None if tail_index is None else _carried(tail_index, sample.draws, values),
        names=sample.names,
        converged=sample.converged,
        pooled=pooled,
        tails=tails,
    )


def _carried(of_z: Tensor, draws: Tensor, values: Tensor) -> Tensor:
    """Return for functions `[m]` what is known of z `[d]`, inf where one is no entry of z."""
    some = slice(limits.MIN_DRAWS)
    same = (values[some, :, None] == draws[some, None, :]).all(0)  # [m, d]
    return torch.where(same, of_z, math.inf).amin(-1)


def spread(log_weights: Tensor) -> float:
    """Return the standard deviation of log weights `[n]` in nats, inf when one of them is −inf.

    >>> spread(torch.tensor([0.0, 0.0, 3.0]))
    1.732...
    """
    return math.inf if bool((log_weights == -math.inf).any()) else float(log_weights.std())


def _nothing(sample: Sample, functions: int) -> Evidence:
    """Return the evidence of weights that are NaN or infinite, or all zero."""
    lost = torch.full((functions,), math.nan, dtype=torch.float64)
    return Evidence(
        draws=len(sample.draws),
        broken=sample.broken,
        empty=sample.empty,
        k_hat=math.nan,
        ess_fraction=math.nan,
        sd_log_weights=math.nan,
        own=Shift(lost, lost, lost, lost),
        names=sample.names,
        converged=sample.converged,
    )


def _moved(sample: Sample, logs: Tensor) -> Moved | None:
    if sample.scores is None or len(sample.draws) <= 2 * sample.draws.shape[1]:
        return None
    difference = (sample.scores[0] - sample.scores[1]).detach().double()
    if not bool(difference.isfinite().all()):
        return None
    return by_scores(sample.draws, difference, torch.softmax(logs, 0))


def _away(sample: Sample, values: Tensor, probed: Probed | None) -> Tensor | None:
    """Return how far the missed peak's mean lies from q's, `[m]`, in sd of q."""
    if probed is None or probed.draws is None or probed.log_weights is None:
        return None
    share = torch.softmax(probed.log_weights, 0)[:, None].double()
    there = (share * sample.values(probed.draws)).sum(0)
    return (there - values.mean(0)) / values.std(0).clamp_min(1e-300)


def _plain(value: Any) -> Any:
    if isinstance(value, Shift):
        return {name: _plain(each) for name, each in value._asdict().items()}
    return value.tolist() if isinstance(value, Tensor) else value


def _read(name: str, value: Any) -> Any:
    if name in _SHIFTS and value is not None:
        return Shift(**{key: _read("tails", each) for key, each in value.items()})
    if name in _TENSORS and value is not None:
        return torch.tensor(value, dtype=torch.float64)
    return tuple(value) if name == "names" else value
