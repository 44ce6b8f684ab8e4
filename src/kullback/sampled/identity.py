"""Means that are known, tested on the draws: `E_p[q/p] = 1`, `E[w] = 1`, `E_p[−log p] = H(p)`.

k3, the best λ and importance weights lean on such an identity, and are biased where it is false.
Which to use: `ratio_identity` for the mean of q/p at draws from p; `weight_identity` for the mean
of importance weights; `entropy_identity` where the entropy of p at each draw's position is known,
which sees a temperature and raw log-probabilities under truncated sampling. `known_mean` is the
test itself, from merged moments.

A test is necessary, not sufficient. Draws at temperature T scored at temperature T give
`E_p[q/p] = 1` exactly, whichever temperature was meant; raw log-probabilities under top-p sampling
nearly so. And a mean below 1 may also hide in draws that did not come: an event of chance
`log(1000)/draws` may be in no draw, hence the allowance made for it.

Reference: MATH 5.3; Hall (1992), "On the removal of skewness by transformation", JRSS B 54.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kullback.core import require, require_type, two_sided

from . import limits
from .tails import fit_tail, tail_length

__all__ = [
    "ENTROPY_CAUSES",
    "RATIO_CAUSES",
    "WEIGHT_CAUSES",
    "Identity",
    "Known",
    "entropy_identity",
    "half_ulps",
    "known_mean",
    "missed_ratio",
    "ratio_identity",
    "weight_identity",
]

RATIO_CAUSES = (
    "the draws come from a truncated p (top-p, top-k) whose log-probabilities were renormalised "
    "(mean below 1)",
    "q has mass where p has none, or where no draw fell (mean below 1)",
    "the columns of log p and log q are shifted against each other",
    "a density is not normalised",
    "the draws do not come from the p that was scored",
)
WEIGHT_CAUSES = (
    "the draws were made by truncated sampling (top-p, top-k) and scored over what was left "
    "(mean below 1)",
    "the target has mass where no draw fell (mean below 1)",
    "a column of log-probabilities is shifted",
    "a density is not normalised",
    "the draws do not come from the distribution that was scored as theirs",
)
ENTROPY_CAUSES = (
    "the draws were made at another temperature than the one that was scored",
    "raw log-probabilities of draws made by truncated sampling (top-p, top-k)",
    "the column of log p is shifted against the draws",
    "the entropies are in other units than nats, or of another distribution",
)


_LOOK = 64  # values that nearly always show that a grid does not hold them


@dataclass(frozen=True, slots=True)
class Identity:
    """What a known mean came to on the draws, and whether they refute it.

    name: the identity in words, "E_p[q/p] = 1". mean, expected: what the draws gave, and the known
    value. error: the standard error of `mean`. z: their distance in standard errors, corrected for
    skewness and for what may not have been drawn; 0 within rounding. refuted: whether that is more
    than chance gives once in `1 / TEST_LEVEL` calls. reason: the finding and its usual causes, in
    words; empty when not refuted. Floats and a bool, or tensors `[*batch]`.
    """

    name: str
    mean: Any
    expected: Any
    error: Any
    z: Any
    refuted: Any
    reason: str = ""

    def __bool__(self) -> bool:
        """Say whether the draws leave the identity standing, everywhere in the batch."""
        return not bool(torch.as_tensor(self.refuted).any())

    def require(self, argument: str, hint: str = "") -> None:
        """Raise an `ArgumentValueError` that names the usual causes if it is refuted."""
        require(bool(self), argument, self.name, self.reason, hint)


@dataclass(frozen=True, slots=True)
class Known:
    """A mean over draws whose expectation is known, each `[*batch]`, float64.

    mean, error: of the draws. skewness: of the mean, `Σδ³/(Σδ²)^{3/2}`. draws: how many.
    missed: how far the mean may lie below its expectation for events that are in no draw.
    rounding: how far the rounding of the inputs may have moved the mean.
    """

    mean: Tensor
    error: Tensor
    skewness: Tensor
    draws: int
    missed: Tensor
    rounding: Tensor


def ratio_identity(
    log_p: Tensor,
    log_q: Tensor,
    *,
    ratio_mean: Tensor | float = 1.0,
    rounding: Tensor | None = None,
) -> Identity:
    """Test `E_p[q(x)/p(x)] = 1` on log densities at draws x ~ p.

    Args:
        log_p: `[*batch, draws]`, in nats, normalised.
        log_q: The same shape.
        ratio_mean: What the mean is known to be, `Q(support of p)`; 1 for full supports. A number
            or `[*batch]`.
        rounding: `[*batch, draws]`, how far `log q − log p` may be off, in nats; None: half a unit
            in the last place of each, of the coarsest grid that holds all values.

    Returns:
        An `Identity`, floats without a batch. A log q of −inf counts as q/p = 0; NaN stays NaN and
        refutes nothing. Where a few draws carry the mean (k-hat of 1 or more) a mean that is too
        small refutes nothing either.

    Raises:
        ValueError: For shapes that differ.

    >>> log_p = torch.full((1000,), -1.0)
    >>> found = ratio_identity(log_p, torch.full((1000,), -1.0962))
    >>> round(found.mean, 4), found.error, found.refuted
    (0.9083, 0.0, True)
    """
    _same("log_q", log_q, log_p)
    off = half_ulps(log_p) + half_ulps(log_q) if rounding is None else rounding
    log_r = log_q.detach().double() - log_p.detach().double()
    known = _known(log_r, off)
    return known_mean(known, "q/p", expected=ratio_mean, causes=RATIO_CAUSES)


def weight_identity(log_weights: Tensor, *, rounding: Tensor | None = None) -> Identity:
    """Test `E[w] = 1` on normalised importance weights `w = p(x)/m(x)` at draws x ~ m.

    Args:
        log_weights: `[*batch, draws]`, in nats: one weight an independent draw. For tokens of one
            sequence pass the weight of the whole sequence, or test each position over sequences.
        rounding: `[*batch, draws]`, how far log w may be off, in nats; None: half a unit in its
            last place.

    Returns:
        An `Identity`, as `ratio_identity`. Self-normalised weights cannot be tested.

    >>> behaviour = torch.full((250, 4), -1.0) - torch.tensor([0.95, 0.95, 0.85, 0.85]).log()
    >>> found = weight_identity((torch.full((250, 4), -1.0) - behaviour).flatten())
    >>> round(found.mean, 2), found.refuted
    (0.9, True)
    """
    require_type(log_weights, Tensor, "log_weights", "pass a torch tensor [*batch, draws]")
    off = half_ulps(log_weights) if rounding is None else rounding
    known = _known(log_weights.detach().double(), off)
    return known_mean(known, "the weights", causes=WEIGHT_CAUSES)


def entropy_identity(
    log_p: Tensor, entropies: Tensor, *, log_weights: Tensor | None = None
) -> Identity:
    """Test `E_p[−log p(x)] = H(p)` where the entropy of p at each draw's position is known.

    It sees draws made at another temperature than was scored, and raw log-probabilities under
    top-p sampling, neither of which moves the mean of q/p.

    Args:
        log_p: `[*batch, draws]`, in nats, of draws x ~ p.
        entropies: The same shape, in nats: the entropy of p at each draw's position (of the sum,
            where log p is a sum over positions).
        log_weights: The same shape: log importance weights, up to a constant, for draws that come
            from another distribution than p.

    Returns:
        An `Identity` of the mean of `−log p − H`, expected 0.

    Raises:
        ValueError: For shapes that differ.

    >>> log_p = torch.tensor([0.5, 0.25, 0.25]).log().repeat(100)
    >>> entropy_identity(log_p, torch.full((300,), 1.0397)).refuted
    True
    """
    _same("entropies", entropies, log_p)
    off = (half_ulps(log_p) + half_ulps(entropies)).mean(-1)
    terms = -log_p.detach().double() - entropies.detach().double()
    if log_weights is not None:
        _same("log_weights", log_weights, log_p)
        weights = (log_weights - log_weights.amax(-1, keepdim=True)).detach().double().exp()
        terms = terms * weights / weights.mean(-1, keepdim=True)
    mean, error, skewness = moments_of(terms)
    draws = terms.shape[-1]
    chance = min(
        1.0, -math.log(limits.MISSED_EVENT_CHANCE) / draws
    )  # of an event that is in no draw
    missed = torch.full_like(mean, -chance * math.log(chance))
    known = Known(mean, error, skewness, draws, missed, off)
    return known_mean(known, "−log p less its entropy", expected=0.0, causes=ENTROPY_CAUSES)


def known_mean(
    known: Known,
    what: str,
    *,
    expected: Tensor | float = 1.0,
    causes: tuple[str, ...] = RATIO_CAUSES,
) -> Identity:
    """Test a mean that is known to be `expected`, from merged moments.

    Refuted where the gap, less `rounding` and (from below) `missed`, is beyond Student's quantile
    at `TEST_LEVEL`, with Hall's correction for the skewness; or, for means of what is never
    negative, where Markov's inequality is broken.

    Args:
        known: The mean `[*batch]` with its error, skewness, draws, `missed` and `rounding`.
        what: What the mean is of, for messages.
        expected: The value that the mean has if the assumption holds.
        causes: What may be wrong where it is refuted, for messages.

    Returns:
        An `Identity`: mean, expected value, z, whether it is refuted, and the reason in words.

    Example:
        >>> one, zero = torch.ones(()), torch.zeros(())
        >>> known_mean(Known(0.9 * one, 0.01 * one, zero, 1000, zero, zero), "q/p").refuted
        True
    """
    target = torch.as_tensor(expected, dtype=torch.float64, device=known.mean.device)
    gap = known.mean - target
    room = known.rounding + torch.where(gap < 0, known.missed, 0.0)
    left = gap.sign() * (gap.abs() - room).clamp_min(0.0)
    sure = (left == 0) | (known.error == 0)  # 0, or beyond any number of errors
    z = hall(torch.where(sure, 0.0, left / known.error), known.skewness)
    z = torch.where(sure, torch.where(left == 0, 0.0, left.sign() * math.inf), z)
    tests = max(gap.numel(), 1)
    limit = two_sided(1 - limits.TEST_LEVEL / tests, max(known.draws - 1, 1))
    refuted = (z.abs() > limit) & (known.draws >= limits.MIN_DRAWS_FOR_ERROR)
    refuted |= (target > 0) & (known.mean > target * limits.MAX_MEAN_BY_MARKOV * tests)
    words = _words(known, what, target.expand(gap.shape), refuted, causes)
    name = f"mean of {what} = {float(target):g}" if not target.dim() else f"mean of {what}"
    fields = {"mean": known.mean, "expected": target, "error": known.error, "z": z}
    if gap.dim():
        found: dict[str, Any] = {key: part.expand(gap.shape) for key, part in fields.items()}
        return Identity(name, **found, refuted=refuted, reason=words)
    found = {key: float(part) for key, part in fields.items()}
    return Identity(name, **found, refuted=bool(refuted), reason=words)


def hall(t: Tensor, skewness: Tensor) -> Tensor:
    """Correct a t statistic for skewness: `t + g t²/3 + g² t³/27 + g/6`, g that of the mean.

    Monotone in t, and normal up to terms of order 1/draws. Reference: Hall (1992), eq. 2.1.

    >>> hall(torch.tensor(-3.0), torch.tensor(0.0))
    tensor(-3.)
    """
    return t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / 6


def missed_ratio(largest: Tensor, k_hat: Tensor, draws: int) -> Tensor:
    """Return how much of the mean of q/p may sit in events that are in no draw.

    They have a chance of up to `log(1/MISSED_EVENT_CHANCE)/draws`. q/p there: up to
    `MISSED_EVENT_RATIO`, or what the fitted tail has beyond the largest draw, `largest/(1 − k)`
    with k̂ plus twice its standard error; +inf from k = 1 on, where the tail has no mean.

    Args:
        largest: The largest q/p of the draws, `[*batch]`.
        k_hat: The Pareto index of the upper tail of q/p, `[*batch]`; NaN where it is unknown.
        draws: How many draws.

    Returns:
        `[*batch]`, an upper bound on the mean's missing part.
    """
    k = k_hat + 2 * (1 + k_hat) / math.sqrt(max(tail_length(draws), 1))
    k = torch.where(k.isfinite(), k, 0.0)  # no tail, or too few draws to see one
    beyond = torch.where(k < 1, largest / (1 - k.clamp(0.0, 0.999)), math.inf)
    chance = -math.log(limits.MISSED_EVENT_CHANCE) / draws
    return chance * beyond.clamp_min(limits.MISSED_EVENT_RATIO)


def moments_of(terms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, standard error and skewness of the mean of terms `[*batch, draws]`.

    A scatter below the rounding of the terms' mean counts as none.
    """
    draws = terms.shape[-1]
    mean = terms.mean(-1)
    delta = terms - mean[..., None]
    squares = (delta**2).sum(-1)
    squares = torch.where(squares <= draws * (limits.RELATIVE_ROUNDING * mean) ** 2, 0.0, squares)
    error = (squares / (draws * max(draws - 1, 1))).sqrt()
    skewness = torch.where(squares > 0, (delta**3).sum(-1) / squares**1.5, 0.0)
    return mean, error, skewness


def half_ulps(values: Tensor) -> Tensor:
    """Return how far each value may be off for having been rounded to its floating type.

    Half a unit in the last place, `|value| eps / 2`, of the coarsest of bfloat16, float16, float32
    and the values' own type whose grid holds all finite values: log-probabilities are often
    computed in bfloat16 and logged in float32. Round numbers, of 5 significant bits or fewer, lie
    on every grid and say nothing: all round, they count as those of their own type. float64 counts
    as exact.

    Args:
        values: Float values of any shape.

    Returns:
        The same shape, float64, in the unit of the values; 0 for values that are not finite.

    Example:
        >>> logged = torch.tensor([-1.5, -2.71875, -0.001]).bfloat16().float()
        >>> half_ulps(logged)[0].item() == 1.5 / 256
        True
    """
    finite = torch.where(values.detach().isfinite(), values.detach(), 0.0)
    coarsest = coarsest_type(values)
    eps = 0.0 if coarsest == torch.float64 else torch.finfo(coarsest).eps
    return finite.double().abs() * (eps / 2)


def coarsest_type(values: Tensor) -> torch.dtype:
    """Return the coarsest of bfloat16, float16, float32 and their own that holds all values.

    >>> coarsest_type(torch.tensor([-1.5, -2.71875, -0.4140625], dtype=torch.float64))
    torch.bfloat16
    """
    held = torch.where(values.detach().isfinite(), values.detach(), 0.0)
    for coarse in (torch.bfloat16, torch.float16, torch.float32):
        coarser = torch.finfo(coarse).eps > torch.finfo(held.dtype).eps
        if coarser and _on_grid(held.flatten()[:_LOOK], coarse) and _on_grid(held, coarse):
            return coarse
    return held.dtype


def _on_grid(values: Tensor, dtype: torch.dtype) -> bool:
    """Say whether all values are exactly those of a coarser type, and not merely round numbers."""
    if not bool((values.to(dtype).to(values.dtype) == values).all()):
        return False
    bits = torch.frexp(values).mantissa * 2**limits.ROUND_NUMBER_BITS
    return not bool((bits == bits.round()).all())


def _known(logs: Tensor, rounding: Tensor) -> Known:
    """Return the moments of `exp(logs)`, `[*batch, draws]`, with what may be missing of them."""
    require(logs.dim() >= 1 and logs.shape[-1] >= 1, "log_p", "[*batch, draws]", list(logs.shape))
    r = logs.exp()
    mean, error, skewness = moments_of(r)
    draws, size = logs.shape[-1], tail_length(logs.shape[-1])
    k_hat = torch.full_like(mean, math.nan)
    if size >= limits.MIN_TAIL_LENGTH:
        top = r.topk(size + 1, -1).values.flip(-1)
        k_hat = fit_tail(top[..., 1:] - top[..., :1])[0]
    missed = missed_ratio(r.amax(-1), k_hat, draws)
    off = torch.expm1(rounding.double()) + 1e-15  # and a few ulps of float64 for what follows
    off = (torch.where(r > 0, r, 0.0) * off).mean(-1)
    return Known(mean, error, skewness, draws, missed, off)


def _words(
    known: Known, what: str, target: Tensor, refuted: Tensor, causes: tuple[str, ...]
) -> str:
    if not bool(refuted.any()):
        return ""
    worst = torch.where(refuted, (known.mean - target).abs(), -1.0).flatten().argmax()
    mean, error, aim = (
        float(x.expand(refuted.shape).flatten()[worst]) for x in (known.mean, known.error, target)
    )
    part = f" (in {int(refuted.sum())} of {refuted.numel()})" if refuted.dim() else ""
    listed = "; ".join(causes)
    return (
        f"the mean of {what} is {mean:.4g} ± {error:.2g} over {known.draws:,} draws, "
        f"and not {aim:.6g}{part}. Usual causes: {listed}"
    )


def _same(name: str, value: Tensor, log_p: Tensor) -> None:
    require_type(log_p, Tensor, "log_p", "pass a torch tensor [*batch, draws]")
    require_type(value, Tensor, name, "pass a torch tensor [*batch, draws]")
    same = value.shape == log_p.shape
    require(same, name, f"the shape of log_p, {list(log_p.shape)}", list(value.shape))
