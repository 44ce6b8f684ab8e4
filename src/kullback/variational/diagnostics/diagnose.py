"""Is a fit to be trusted? Everything that draws of q can say, weighed together.

Which to use: `diagnose`, on plain arrays. It needs log p and log q at draws of q; with the scores
(gradients of both) it can also judge where the weights fail, and with what `probe` found it knows
of peaks that q has missed. `diagnose_beyond`, through `assess`, where log p can be evaluated
anywhere. `gather` computes the evidence, `judge` finds level and words.

Reference: Vehtari et al. (2024) for k̂; Yao, Vehtari, Simpson and Gelman (2018), "Yes, but did it
work?"; Huggins et al. (2020), "Validated variational inference via practical posterior error
bounds".
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kullback.core import Estimate, describe, json_value, require, require_type
from kullback.exact import log_excess
from kullback.sampled import importance_bound, log_mean_exp
from kullback.variational import limits
from kullback.variational.families.family import Frame
from kullback.variational.target.batches import LogDensity, score_in_pieces

from .defensive_sampling import (
    Ridge,
    WiderDraws,
    bends,
    draw_wider,
    follow_all,
    funnels,
    pooled,
    unreached,
)
from .evidence import Evidence, Pool, Sample, gather
from .heavy_tails import tail_index
from .missed_modes import Probed, probe
from .verdict import Level, Verdict, judge, unsound

__all__ = ["Diagnosis", "diagnose", "diagnose_beyond", "diagnose_sample", "ridges_of"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the draws say about a fit: a level, a sentence, and the numbers behind it.

    A bound may be inf. Bounds are no proofs: they are calibrated by benchmarks/verdicts.py.

    Attributes:
        evidence: all that is known, one record; `k_hat`, `ess_fraction` (ESS/n), `sd_log_weights`
            (nats), `residual` (root mean square of the part of `∇log p − ∇log q` that is not linear
            in z, in the worst direction, whitened by q; None without scores) and `tails` (how many
            times q's mass p has beyond q's 1 % or 99 % quantile, the worse of both, `[m]`; None
            without draws of a wider distribution) are read from it.
        judged: the level, "trust" (every bound is at most 0.2), "partly" (at most 0.6) or "do not
            trust", the sentence, the reasons, most important first, and the bounds: `level`,
            `verdict`, `reasons`, `mean_bound` and `log_sd_bound` (`[m]`, how far at most the mean
            of p lies from the draws', in their sd, and the log of p's sd from the log of theirs),
            `mean_shift` and `log_sd_shift` (how far they seem to be) are read from it.
        elbo: `E_q[log p − log q]`, in nats.
        evidence_bound: its importance-weighted form, n/50 draws each, in nats.
        kl: KL(q‖p) against the normalised p, from the same draws (log of the mean weight less the
            mean log weight), in nats.
        resampling: "" when importance-resampled draws are sound, else why not.
        pool: draws of q and of the wider distribution with their log weights, or None.
        probed: what `probe` found elsewhere, or None.
    """

    evidence: Evidence
    judged: Verdict
    elbo: Estimate
    evidence_bound: Estimate
    kl: Estimate
    resampling: str
    pool: Pool | None = None
    probed: Probed | None = None

    @property
    def level(self) -> Level:
        """The level."""
        return self.judged.level

    @property
    def verdict(self) -> str:
        """The level in words, and which other peaks the search may have missed."""
        sentence = self.judged.sentence
        if self.level == "do not trust":
            return sentence
        unseen = "other peaks were not searched for"
        if self.probed is not None:
            unseen = f"of other peaks {self.probed.seen}, and any beyond {self.probed.reach:g} sd"
        return f"{sentence.removesuffix('.')}; {unseen}."

    @property
    def reasons(self) -> tuple[str, ...]:
        """What stands behind the verdict, most important first."""
        return self.judged.reasons

    @property
    def searched(self) -> str:
        """How far p was searched for other peaks, within which no other was missed, in words."""
        return "no other peaks were searched for" if self.probed is None else self.probed.words

    @property
    def k_hat(self) -> float:
        """Pareto k-hat of q's own weights."""
        return self.evidence.k_hat

    @property
    def ess_fraction(self) -> float:
        """ESS/n of q's own weights."""
        return self.evidence.ess_fraction

    @property
    def sd_log_weights(self) -> float:
        """Standard deviation of q's own log weights, nats."""
        return self.evidence.sd_log_weights

    @property
    def residual(self) -> float | None:
        """Size of the part of the score difference that is not linear."""
        return self.evidence.residual

    @property
    def mean_bound(self) -> Tensor:
        """Bound on the error of each mean, `[m]`, in sd of the draws."""
        return self.judged.bounds.mean

    @property
    def log_sd_bound(self) -> Tensor:
        """Bound on the error of each log sd, `[m]`."""
        return self.judged.bounds.log_sd

    @property
    def mean_shift(self) -> Tensor:
        """How far each mean seems to be off, `[m]`, in sd of the draws."""
        return self.judged.bounds.shift.mean

    @property
    def log_sd_shift(self) -> Tensor:
        """How far each log sd seems to be off, `[m]`."""
        return self.judged.bounds.shift.log_sd

    @property
    def tails(self) -> Tensor | None:
        """How many times q's mass p has in the tails, `[m]`."""
        return self.evidence.tails

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary: infinities and NaN as strings, tensors as lists."""
        plain = {name: json_value(getattr(self, name)) for name in _NUMBERS}
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
    wide: WiderDraws | None = None,
    names: Sequence[str] = (),
    converged: bool = True,
) -> Diagnosis:
    """Judge q by `log w = log p − log q` and by scores at draws z ~ q, and say it in words.

    The evidence is weighed together: k̂ alone gives false alarms where the weights are all but
    equal, and a bound is the largest of what weights and scores say, widened by their errors and,
    where the weights' tail is heavy, by the square of the scores' residual. Approximate: nothing
    computed at draws of q can see mass that q does not reach.
    log p = −inf (no mass there) is a weight of 0, and the ELBO is −inf; NaN or +inf is never
    trusted. No gradient flows.
    Reference: as for this module; Owen (2013) for the errors of reweighted moments.

    Args:
        draws: `[n, d]`, n ≥ 100, independent draws of q.
        log_p: `[n]`, unnormalised, in nats.
        log_q: `[n]`, normalised, in nats.
        scores: `∇log p` and `∇log q` at the draws, `[n, d]` each; without them bounds are wider.
        of: maps `[n, d]` to the functions whose moments are judged, `[n, m]`; by default z itself.
        probed: what `probe` found elsewhere.
        wide: draws of a wider distribution (`draw_wider`), which show what p does where q's tails
            are too thin.
        names: of the functions, for the sentence.
        converged: whether the optimiser's own convergence test passed; if not the level is never
            "trust".

    Returns:
        The level, the sentence, and the numbers behind them.

    Raises:
        ArgumentValueError: for shapes that do not fit or fewer than 100 draws.

    Example:
        >>> seed = torch.Generator().manual_seed(0)
        >>> z = torch.randn(4000, 2, generator=seed, dtype=torch.float64)
        >>> log_q = -0.5 * z.square().sum(-1) - math.log(2 * math.pi)
        >>> diagnose(z, log_q + 3.0, log_q).verdict
        'Trust: means to about 0.05 sd, ... about 4 %; other peaks were not searched for.'
    """
    sample = Sample(
        draws=draws,
        log_p=log_p,
        log_q=log_q,
        scores=scores,
        of=of,
        names=tuple(names),
        converged=converged,
    )
    return diagnose_sample(sample, probed=probed, wide=wide)


def diagnose_sample(
    sample: Sample, *, probed: Probed | None = None, wide: WiderDraws | None = None
) -> Diagnosis:
    """Return `diagnose` of a `Sample`."""
    _check(sample)
    return _diagnosed(_in_double(sample), probed, wide)


def _in_double(sample: Sample) -> Sample:
    held = (sample.draws, sample.log_p, sample.log_q)
    draws, log_p, log_q = (x.detach().double() for x in held)
    return replace(sample, draws=draws, log_p=log_p, log_q=log_q)


def diagnose_beyond(
    log_density: LogDensity,
    log_prob: LogDensity | None,
    sample: Sample,
    *,
    probed: Probed | None = None,
    few: bool = False,
    generator: torch.Generator | None = None,
) -> Diagnosis:
    """Diagnose q by its draws, by climbs of log p from far away, and by wider distributions.

    log_density, log_prob: log p (unnormalised) and log q, `[n, d]` to `[n]`; without log q there is
    no wider distribution. The search costs 120 gradients of 32 points, the wider distribution twice
    as many draws as q has. In more than eight dimensions these are few: a verdict that is not
    "trust" is given by four times as many instead. Where the scores say that a coordinate is the
    scale of others, p is followed along it (see `follow`), up to 64 dimensions. Bounds of
    moments count tails that fall by a power (see `tail_index`). Where log p raises
    far out, the diagnosis is that of q's own draws, with a warning. probed: what an earlier search
    from this q found; none is made then. few: whether each evaluation
    is dear, so that climbs are few and there is no second look.

    >>> def normal(z):
    ...     return -0.5 * z.square().sum(-1) - 0.919
    >>> z = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> diagnose_beyond(normal, normal, Sample(draws=z, log_p=normal(z), log_q=normal(z))).level
    'trust'
    """
    _check(sample)
    sample = _in_double(sample)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    draws = sample.draws
    own = torch.Generator().manual_seed(int(torch.randint(2**31, (), generator=generator)))
    try:
        probed = probed or probe(
            log_density,
            draws,
            sample.log_p,
            sample.log_q,
            starts=limits.LOOPED_CLIMBS if few else limits.CLIMBS,
            scanned=0 if few else limits.SCANNED_POINTS,
            generator=own,
        )
        if log_prob is None:
            return _diagnosed(sample, probed, None)
        ridges = ridges_of(log_density, sample)
        tails = tail_index(log_density, draws)
        for times in (limits.WIDE_DRAWS, limits.MORE_WIDE_DRAWS):
            options = {"number": times * len(draws), "ridges": ridges, "generator": generator}
            wide = draw_wider(log_density, log_prob, draws, **options)  # type: ignore[arg-type]
            endless = any(ridge.endless for ridge in ridges)
            found = _diagnosed(sample, probed, wide, endless=endless, tails=tails)
            if few or found.level == "trust" or draws.shape[1] <= limits.MAX_FIRST_LOOK_DIMENSIONS:
                break
        return found
    except (RuntimeError, ValueError) as error:  # a user's function may refuse far points
        reason = str(error).strip().splitlines()[0]
        warnings.warn(f"other peaks and tails were not looked for: {reason}", stacklevel=3)
        return _diagnosed(sample, probed, None)


def ridges_of(log_density: LogDensity, sample: Sample) -> list[Ridge]:
    """Follow p along the coordinates that are the scale of others, and along its bends."""
    usable = sample.scores is not None and bool(sample.scores[0].isfinite().all())
    if (
        sample.scores is None
        or not usable
        or sample.draws.shape[1] > limits.MAX_FOLLOWED_DIMENSIONS
    ):
        return []
    frame = Frame.of_draws(sample.draws)
    draws, scores = sample.draws, sample.scores[0].double()
    scales = [frame.axes[j] for j in funnels(frame, draws, scores)]
    bent = bends(frame, draws, scores)

    def score(z: Tensor) -> tuple[Tensor, Tensor]:
        return score_in_pieces(log_density, z, len(z))

    of_scales = [True] * len(scales) + [False] * len(bent)
    found = follow_all(score, frame, [*scales, *bent], of_scales)
    return [ridge for ridge in found if ridge is not None]


def _diagnosed(
    sample: Sample,
    probed: Probed | None,
    wide: WiderDraws | None,
    *,
    endless: bool = False,
    tails: Tensor | None = None,
) -> Diagnosis:
    logs = sample.log_weights
    pool, missing = None, 0.0
    if wide is not None and sample.broken == 0 and sample.empty < len(logs):
        pool = _pool(sample, wide)
        if pool is not None:
            missing = unreached(sample.log_p, sample.log_q, wide, times=limits.UNREACHED_RATIO)
    evidence = gather(
        sample, pool=pool, probed=probed, missing=missing, endless=endless, tail_index=tails
    )
    judged = judge(evidence)
    if math.isnan(evidence.k_hat):
        nothing = Estimate(math.nan, math.nan, len(logs))
        return Diagnosis(evidence, judged, nothing, nothing, nothing, judged.reasons[0])
    return Diagnosis(
        evidence=evidence,
        judged=judged,
        elbo=Estimate.from_terms(logs),
        evidence_bound=_evidence_bound(logs),
        kl=_gap(logs),
        resampling=unsound(logs if pool is None else pool.log_weights, pooled=pool is not None),
        pool=pool,
        probed=probed,
    )


def _pool(sample: Sample, wide: WiderDraws) -> Pool | None:
    """Put the draws of q and of the wide distribution together, where both are numbers."""
    if bool((wide.log_p.isnan() | (wide.log_p == math.inf)).any()):
        return None
    pool = pooled(sample.draws, sample.log_p, sample.log_q, wide)
    return pool if bool(pool.log_weights.isfinite().all()) else None


def _evidence_bound(logs: Tensor) -> Estimate:
    size = len(logs) // limits.BOUND_REPEATS
    return importance_bound(logs[: size * limits.BOUND_REPEATS].reshape(limits.BOUND_REPEATS, size))


def _gap(logs: Tensor) -> Estimate:
    """Estimate KL(q‖p) = log E[w] − E[log w] with the error of the paired difference."""
    top = log_mean_exp(logs)
    paired = (logs - top).exp() - 1.0 - (logs - logs.mean())
    error = float(paired.std()) / math.sqrt(len(logs))
    value = _log_mean_over_mean_log(logs)
    why = "the log of a mean (Jensen) and a tail without draws: low"
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


def _check(sample: Sample) -> None:
    draws, log_p, log_q, scores = sample.draws, sample.log_p, sample.log_q, sample.scores
    for name, value in (("draws", draws), ("log_p", log_p), ("log_q", log_q)):
        require_type(value, Tensor, name)
    shaped = draws.ndim == 2 and draws.shape[1] >= 1
    require(shaped, "draws", "[n, d]", describe(draws))
    require(len(draws) >= limits.MIN_DRAWS, "draws", f"at least {limits.MIN_DRAWS}", len(draws))
    for name, value in (("log_p", log_p), ("log_q", log_q)):
        require(value.shape == draws.shape[:1], name, f"[{len(draws)}]", describe(value))
    finite = bool(log_q.isfinite().all()) and bool(draws.isfinite().all())
    require(finite, "draws and log_q", "finite numbers", "NaN or infinity among them")
    for value in scores or ():
        require(value.shape == draws.shape, "scores", f"{list(draws.shape)} each", describe(value))
