"""Is a fit to be believed? Everything that draws of q can say, weighed together.

Which to use: `diagnose`, on plain arrays. It needs log p and log q at draws of q; with the scores
(gradients of both) it can also judge where the weights fail, and with what `probe` found it knows
of peaks that q has missed. The words come from `verdict`; the moments from `corrections`.

Reference: Vehtari et al. (2024) for k̂; Yao, Vehtari, Simpson and Gelman (2018), "Yes, but did it
work?"; Huggins et al. (2020), "Validated variational inference via practical posterior error
bounds".
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from kullback.core import Estimate, require, require_type
from kullback.core.checks import describe
from kullback.exact.excess import log_excess
from kullback.sampled import effective_sample_size, importance_bound, log_mean_exp, pareto_k

from .bounds import bounds_on, spread, widened
from .corrections import tail_ratio
from .probe import Probed
from .verdict import Level, judge, unsound
from .wide import Wide, pooled

__all__ = ["Diagnosis", "diagnose"]

_FEWEST = 100  # draws of q
_REPEATS = 50  # of the importance-weighted bound
_TAIL = 0.01  # of q, at either end


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the draws say about a fit: a level, a sentence, and the numbers behind it.

    level: "trust" (every bound below is at most 0.2), "partly" (at most 0.6) or "do not trust".
    verdict: the level in words. reasons: what stands behind it, most important first.
    elbo: `E_q[log p − log q]`. evidence_bound: its importance-weighted form, n/50 draws each.
    kl: KL(q‖p) against the normalised p, from the same draws (log of the mean weight less the mean
    log weight). All in nats. k_hat, ess_fraction (ESS/n) and sd_log_weights (nats) are about the
    weights. residual: root mean square of the part of `∇log p − ∇log q` that is not linear in z, in
    the worst direction, whitened by q; None without scores.
    mean_bound, log_sd_bound: `[m]`, how far at most the mean of p lies from the draws' (in their
    sd), and the log of p's sd from the log of theirs; mean_shift, log_sd_shift: `[m]`, how far they
    seem to be. A bound may be inf. They are no proofs: calibrated by benchmarks/verdicts.py.
    tails: `[m]`, how many times q's mass p has beyond q's 1 % or 99 % quantile, the worse of both;
    None without draws of a wider law.
    pool: draws of q and of the wider law `[k, d]`, and their log weights `[k]`, or None.
    resampling: "" when importance-resampled draws are sound, else why not.
    """

    level: Level
    verdict: str
    reasons: tuple[str, ...]
    resampling: str
    elbo: Estimate
    evidence_bound: Estimate
    kl: Estimate
    mean_shift: Tensor
    probed: Probed | None
    pool: tuple[Tensor, Tensor] | None
    _: KW_ONLY
    k_hat: float
    ess_fraction: float
    sd_log_weights: float
    residual: float | None
    mean_bound: Tensor
    log_sd_bound: Tensor
    log_sd_shift: Tensor
    tails: Tensor | None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary: infinities and NaN as strings, tensors as lists."""
        plain = {name: _plain(getattr(self, name)) for name in _NUMBERS}
        found = None if self.probed is None else self.probed.share
        estimates = {name: getattr(self, name).to_dict() for name in _ESTIMATES}
        words = {"level": self.level, "verdict": self.verdict, "reasons": list(self.reasons)}
        return words | estimates | plain | {"elsewhere": found, "resampling": self.resampling}


_NUMBERS = (
    "k_hat",
    "ess_fraction",
    "sd_log_weights",
    "residual",
    "mean_bound",
    "log_sd_bound",
    "mean_shift",
    "log_sd_shift",
    "tails",
)
_ESTIMATES = ("elbo", "evidence_bound", "kl")


def diagnose(
    draws: Tensor,
    log_p: Tensor,
    log_q: Tensor,
    *,
    scores: tuple[Tensor, Tensor] | None = None,
    of: Callable[[Tensor], Tensor] | None = None,
    probed: Probed | None = None,
    wide: Wide | None = None,
    names: Sequence[str] = (),
    converged: bool = True,
) -> Diagnosis:
    """Judge q by `log w = log p − log q` and by scores at draws z ~ q, and say it in words.

    draws: `[n, d]`, n ≥ 100, independent draws of q. log_p: `[n]`, unnormalised; log_q: `[n]`,
    normalised; nats. scores: `∇log p` and `∇log q` at the draws, `[n, d]` each; without them bounds
    are wider. of: maps `[n, d]` to the functions whose moments are judged, `[n, m]`; by default z
    itself. probed: what `probe` found elsewhere. wide: draws of a wider law (`widely`), which show
    what p does where q's tails are too thin. names: of the functions, for the sentence. converged:
    whether the fitter thought it was done;
    if not the level is never "trust".

    The evidence is weighed together: k̂ alone gives false alarms where the weights are all but
    equal, and a bound is the largest of what weights and scores say, widened by their errors and,
    where the weights' tail is heavy, by the square of the scores' residual. Approximate: nothing
    computed at draws of q can see mass that q does not reach.
    log p = −inf (no mass there) is a weight of 0, and the ELBO is −inf; NaN or +inf is never
    trusted. No gradient flows.

    Errors: `ArgumentValueError` for shapes that do not fit or fewer than 100 draws.
    Reference: as for this module; Owen (2013) for the errors of reweighted moments.

    >>> seed = torch.Generator().manual_seed(0)
    >>> z = torch.randn(4000, 2, generator=seed, dtype=torch.float64)
    >>> log_q = -0.5 * z.square().sum(-1) - math.log(2 * math.pi)
    >>> print(diagnose(z, log_q + 3.0, log_q).verdict)
    Trust: means to about 0.05 sd, standard deviations to about 4 %.
    """
    _check(draws, log_p, log_q, scores)
    draws, log_p, log_q = (x.detach().double() for x in (draws, log_p, log_q))
    functions = _Functions(of)
    values, logs = functions(draws), log_p - log_q
    broken = int((logs.isnan() | (logs == math.inf)).sum())
    if broken or bool((logs == -math.inf).all()):
        return _unusable(logs, values.shape[1], broken)
    pool = _pool(draws, log_p, log_q, wide)
    shift, bounds, residual = bounds_on(draws, values, logs, scores, functions, pool=pool)
    tails = pool and tail_ratio(functions(pool[0]), pool[1], values, share=_TAIL)
    if probed is not None and probed.draws is not None:
        bounds = widened(bounds, values, functions(probed.draws), probed)
    numbers: dict[str, Any] = {
        "k_hat": float(pareto_k(logs)),
        "ess_fraction": float(effective_sample_size(logs)) / len(logs),
        "sd_log_weights": spread(logs),
        "residual": residual,
        "mean_bound": bounds[0],
        "log_sd_bound": bounds[1],
        "log_sd_shift": shift.log_sd,
        "tails": tails,
    }
    elsewhere, empty = probed.share if probed else 0.0, int((logs == -math.inf).sum())
    others = (len(draws), elsewhere, empty)
    words = judge(*others, **numbers, names=names, converged=converged)
    sound = unsound(logs if pool is None else pool[1], pooled=pool is not None)
    elbo, bound, kl = Estimate.from_terms(logs), _evidence_bound(logs), _gap(logs)
    return Diagnosis(*words, sound, elbo, bound, kl, shift.mean, probed, pool, **numbers)


def _pool(
    draws: Tensor, log_p: Tensor, log_q: Tensor, wide: Wide | None
) -> tuple[Tensor, Tensor] | None:
    """Put the draws of q and of the wide law together, where both are numbers."""
    if wide is None or bool((wide.log_p.isnan() | (wide.log_p == math.inf)).any()):
        return None
    pool = pooled(draws, log_p, log_q, wide)
    return pool if bool(pool[1].isfinite().all()) else None


@dataclass(frozen=True, slots=True)
class _Functions:
    """The functions whose moments are judged, `[n, d]` to `[n, m]`; z itself by default."""

    of: Callable[[Tensor], Tensor] | None

    def __call__(self, draws: Tensor) -> Tensor:
        values = draws if self.of is None else self.of(draws).detach().double()
        good = values.ndim == 2 and len(values) == len(draws)
        require(good, "of", f"to return [{len(draws)}, m]", describe(values))
        return values


def _evidence_bound(logs: Tensor) -> Estimate:
    size = len(logs) // _REPEATS
    return importance_bound(logs[: size * _REPEATS].reshape(_REPEATS, size))


def _gap(logs: Tensor) -> Estimate:
    """Estimate KL(q‖p) = log E[w] − E[log w] with the error of the paired difference."""
    top = log_mean_exp(logs)
    paired = (logs - top).exp() - 1.0 - (logs - logs.mean())
    error = float(paired.std()) / math.sqrt(len(logs))
    value = _log_mean_over_mean_log(logs)
    why = "the log of a mean (Jensen) and a tail not seen yet: low"
    error = math.inf if math.isinf(value) else error
    return Estimate(value, error, len(logs), bias="low", why=why)


def _log_mean_over_mean_log(logs: Tensor) -> float:
    """Return `log mean w − mean log w ≥ 0`, from deviations where all of them are small.

    As a difference it could come out at −4e-16 for weights that all agree.
    """
    centred = logs - logs.mean()
    if not float(centred.abs().max()) < 1:
        return float(log_mean_exp(logs) - logs.mean())
    return math.log1p(float(log_excess(centred).mean()))


def _unusable(logs: Tensor, functions: int, broken: int) -> Diagnosis:
    """Write the diagnosis of weights that are NaN or infinite, or all zero."""
    lost = torch.full((functions,), math.inf, dtype=torch.float64)
    nothing = Estimate(math.nan, math.nan, len(logs))
    what = f"log p is NaN or +inf at {broken} of {len(logs):,} draws"
    what = what if broken else "log p is -inf at every draw: q lies where p has no mass"
    words: tuple[Level, str, tuple[str, ...], str]
    words = ("do not trust", f"Do not trust: {what}.", (what,), what)
    numbers = dict.fromkeys(("k_hat", "ess_fraction", "sd_log_weights"), math.nan)
    tensors = {"mean_bound": lost, "log_sd_bound": lost, "log_sd_shift": lost * math.nan}
    figures: dict[str, Any] = {**numbers, **tensors, "residual": None, "tails": None}
    return Diagnosis(*words, nothing, nothing, nothing, lost * math.nan, None, None, **figures)


def _check(
    draws: Tensor, log_p: Tensor, log_q: Tensor, scores: tuple[Tensor, Tensor] | None
) -> None:
    for name, value in (("draws", draws), ("log_p", log_p), ("log_q", log_q)):
        require_type(value, Tensor, name)
    shaped = draws.ndim == 2 and draws.shape[1] >= 1
    require(shaped, "draws", "[n, d]", describe(draws))
    require(len(draws) >= _FEWEST, "draws", f"at least {_FEWEST}", len(draws))
    for name, value in (("log_p", log_p), ("log_q", log_q)):
        require(value.shape == draws.shape[:1], name, f"[{len(draws)}]", describe(value))
    finite = bool(log_q.isfinite().all()) and bool(draws.isfinite().all())
    require(finite, "draws and log_q", "finite numbers", "NaN or infinity among them")
    for value in scores or ():
        require(value.shape == draws.shape, "scores", f"{list(draws.shape)} each", describe(value))


def _plain(value: float | Tensor | None) -> Any:
    """Turn a number or tensor into what JSON can hold."""
    if isinstance(value, Tensor):
        return [_plain(item) for item in value.tolist()]
    return value if value is None or math.isfinite(value) else repr(value)
