"""When is `± standard error` wrong? The tests behind every warning on a sampled number.

A mean's error bar is the normal law's, and that law needs three things which the draws themselves
can refute: enough draws; none of them carrying the sum (the skewness of the *mean*, `γ / √n`, costs
a symmetric 95 % interval about `γ²/(4n)` of its coverage by Edgeworth's expansion); and a finite
variance (Pareto `k̂ < 1/2`). The skewness can be allowed for, in the interval (`allowance`): what is
left to doubt then are tails so heavy that the mean itself may be infinite. Where an identity is
known, such as `E_p[q/p] = 1`, draws that break it have missed something (identity.py).

Which to use: `estimate_of` for the mean of terms; `mean_of` and `judged` for a number whose
interval is symmetric.

Reference: Hall (1992), "The Bootstrap and Edgeworth Expansion", section 2.6, for the skewness;
Vehtari et al. (2024) for k̂. The limits stand in limits.py; they are checked by
benchmarks/interval_coverage.py.
"""

import math
from dataclasses import replace
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kullback.core import Bias, Estimate

from . import limits
from .tails import fit_tail, tail_length

__all__ = [
    "Chain",
    "Doubt",
    "about_bias",
    "about_control",
    "about_rare_events",
    "about_skewed_terms",
    "about_terms",
    "allowance",
    "autocorrelation_time",
    "chain_of",
    "correlated_neighbours",
    "estimate_of",
    "judged",
    "mean_of",
    "monotone",
    "of_a_chain",
    "standard_error",
]


class Doubt(NamedTuple):
    """One reason to doubt an error bar: how large (`[*batch]`), where (bool), in which words.

    refused: whether there must be no error bar where it applies, rather than a warning beside it.
    """

    size: Tensor
    where: Tensor
    words: str
    refused: bool = False

    def only(self, part: Tensor) -> "Doubt":
        """Return the same doubt about this part of the batch only."""
        return self._replace(where=self.where & part)


def about_terms(draws: int, skewness: Tensor, k_hat: Tensor) -> list[Doubt]:
    """Return the doubts about a symmetric interval: few draws, skewness, a heavy tail.

    Args:
        draws: How many terms were averaged.
        skewness: `[*batch]`, of the mean: `Σδ³/(Σδ²)^{3/2}`.
        k_hat: `[*batch]`, the Pareto shape of the terms' tail.

    Returns:
        Three `Doubt`s, each with the part of the batch that it applies to.

    Example:
        >>> found = about_terms(1000, torch.tensor(0.2), torch.tensor(0.0))
        >>> [bool(doubt.where) for doubt in found]
        [False, True, False]
    """
    return [
        _few(draws, skewness),
        Doubt(
            skewness.abs(),
            skewness.abs() > limits.MAX_SKEWNESS_OF_MEAN,
            "a few draws carry the sum (skewness of the mean {:.2f}, above 0.08): "
            "the error bar is too short on the tail's side; draw more",
        ),
        Doubt(
            k_hat,
            may_be_heavy(k_hat, draws) & (skewness.abs() > limits.MIN_SKEWNESS_FOR_TAIL),
            "heavy tail (Pareto k-hat {:.2f}, which does not exclude 0.5): the variance may be "
            "infinite and the error bar means little",
        ),
    ]


def about_skewed_terms(
    draws: int, skewness: Tensor, k_hat: Tensor, *, finite_variance: Tensor | None = None
) -> list[Doubt]:
    """Return the doubts about an interval that allows for skewness: is the mean perhaps infinite?

    Where k̂ less its own standard error is ½ or more, the words say that the variance seems
    infinite; where k̂ is within its own standard error of 1, or above, no interval holds and the
    draws cannot show that there is a mean: no error bar.

    Args:
        draws: How many terms were averaged.
        skewness: `[*batch]`, of the mean: `Σδ³/(Σδ²)^{3/2}`.
        k_hat: `[*batch]`, the Pareto shape of the terms' tail.
        finite_variance: Bool `[*batch]`, where the variance is known to be finite; the words then
            say so. Nowhere if None.

    Returns:
        `Doubt`s, each with the part of the batch that it applies to; `refused` where there must be
        no error bar.

    Example:
        >>> found = about_skewed_terms(10_000, torch.tensor(0.9), torch.tensor(1.2))
        >>> [doubt.refused for doubt in found if doubt.where]
        [True]
    """
    scatter = _scatter(k_hat, draws)
    least, sure = limits.MIN_SKEWNESS_FOR_NO_MEAN, 1.0
    if draws < limits.FEW_DRAWS_FOR_PARETO_K:  # k̂ is too noisy to refuse by
        least, sure = limits.MIN_SKEWNESS_FOR_NO_MEAN_FEW_DRAWS, -1.0
    skewed = skewness.abs() > least
    unknown = k_hat.isnan()
    none = skewed & (k_hat + sure * scatter >= limits.FINITE_MEAN_PARETO_K)
    may_lack = unknown | (k_hat + limits.PARETO_K_ERRORS * scatter >= limits.FINITE_MEAN_PARETO_K)
    heavy_tail = k_hat >= limits.FINITE_VARIANCE_PARETO_K
    enough = draws >= limits.MIN_DRAWS_FOR_PARETO_K
    hidden = heavy_tail & enough  # a body that is skewed the other way hides a tail
    heavy = may_lack & (skewed | hidden) & ~none
    wide = skewed & (k_hat - scatter >= limits.FINITE_VARIANCE_PARETO_K) & ~none & ~heavy
    finite = torch.zeros_like(none) if finite_variance is None else finite_variance
    return [
        _few(draws, skewness),
        Doubt(
            k_hat,
            heavy & ~finite,
            "a few draws carry the sum, and its tail may be too heavy for any error bar (Pareto "
            "k-hat {:.2f}): draw more",
        ),
        Doubt(
            k_hat,
            wide & ~finite,
            "the variance seems infinite (Pareto k-hat {:.2f}, above 0.5 by more than its error): "
            "the standard error is too small; the interval, longer at the tail, allows for it",
        ),
        Doubt(
            k_hat,
            (heavy | wide) & finite,
            "a few draws carry the sum (Pareto k-hat {:.2f} of these draws; by the tails of p and "
            "q the variance is finite): the standard error may be too small; draw more",
        ),
        Doubt(
            k_hat,
            none & ~finite,
            "the largest terms have so heavy a tail (Pareto k-hat {:.2f}, within its own error of "
            "1 or above) that no mean can be inferred from these draws; it may be infinite",
            refused=True,
        ),
        Doubt(
            k_hat,
            none & finite,
            "a few draws carry the sum (Pareto k-hat {:.2f}, within its own error of 1 or above): "
            "mean and variance are finite by the tails of p and q, but cannot be inferred from "
            "these draws; draw more",
            refused=True,
        ),
    ]


def allowance(skewness: Tensor, k_hat: Tensor) -> Tensor:
    """Return the skewness that an interval should allow for: the draws', widened by their tail.

    Draws without the extreme tail show too little of it. The factor is `1.2 + 8 (k̂ − 0.35)` where
    k̂ is above 0.35, at most 5.2; the result is at most 0.8, beyond which Hall's interval shortens
    again.

    Args:
        skewness: `[*batch]`, of the mean of the draws.
        k_hat: `[*batch]`, the Pareto shape of the terms' tail; NaN counts as 0.

    Returns:
        `[*batch]`, between −0.8 and 0.8.

    Example:
        >>> allowance(torch.tensor([0.1, 2.0]), torch.tensor([0.0, 0.0]))
        tensor([0.1200, 0.8000])
    """
    beyond = k_hat.nan_to_num(0.0) - limits.SKEWNESS_FACTOR_FROM_K
    heavier = (limits.SKEWNESS_FACTOR_SLOPE * beyond).clamp(0.0, limits.MAX_SKEWNESS_FACTOR_RISE)
    most = limits.MAX_SKEWNESS_OF_INTERVAL
    return (skewness * (limits.SKEWNESS_FACTOR + heavier)).clamp(-most, most)


def correlated_neighbours(terms: Tensor) -> tuple[Tensor, Tensor]:
    """Test whether neighbouring terms are alike, as the states of a Markov chain are.

    The lag-1 correlation of n independent draws, in any order, has mean 0 and variance 1/n; its
    test is one-sided, at 1e-5 for a call. Sorted terms are left out: no chain is monotone.

    Args:
        terms: `[*batch, draws]`, one a draw, in the order in which they were drawn.

    Returns:
        Where neighbours are correlated, bool `[*batch]`, and the correlation `[*batch]`.

    Example:
        >>> noise = torch.randn(1000, generator=torch.Generator().manual_seed(0))
        >>> [bool(correlated_neighbours(x)[0]) for x in (noise, noise.sort().values)]
        [False, False]
        >>> bool(correlated_neighbours(noise[1:] + noise[:-1])[0])
        True
    """
    x = terms.detach()[..., : limits.MAX_ORDERED_DRAWS].double()
    none = torch.zeros(x.shape[:-1], dtype=torch.bool, device=x.device)
    draws = x.shape[-1]
    if draws < limits.MIN_DRAWS_FOR_ORDER or not none.numel():
        return none, none.double()
    ends = torch.tensor([0.25, 0.5, 0.75], dtype=x.dtype, device=x.device)
    some = x[..., :: -(-draws // 10_000)]
    low, middle, high = some.quantile(ends, -1)
    width = (limits.MAX_STANDARDISED_TERM * (high - low))[..., None]
    cut = torch.minimum(torch.maximum(x - middle[..., None], -width), width)
    cut = torch.where(width > 0, cut, x - middle[..., None])  # most are one number: none is cut
    cut = cut - cut.mean(-1, keepdim=True)
    found = (cut[..., 1:] * cut[..., :-1]).sum(-1) / cut.square().sum(-1)
    level = NormalDist().inv_cdf(1 - limits.TEST_LEVEL / none.numel())
    far = found * math.sqrt(draws) > level  # NaN, of equal or infinite terms, fails
    alike = far & ~monotone(x)
    return alike, torch.where(alike, found, 0.0)


def monotone(x: Tensor) -> Tensor:
    """Say which rows are sorted, one way or the other.

    Args:
        x: `[*batch, n]`.

    Returns:
        Bool `[*batch]`.

    Example:
        >>> monotone(torch.tensor([[1.0, 2.0, 2.0], [3.0, 1.0, 2.0], [3.0, 2.0, 1.0]])).tolist()
        [True, False, True]
    """
    steps = x.diff()
    return (steps >= 0).all(-1) | (steps <= 0).all(-1)


def autocorrelation_time(terms: Tensor) -> Tensor:
    """Return `τ = 1 + 2 Σ ρ_k ≥ 1`: the variance of a chain's mean over that of independent draws.

    By the initial monotone sequence of sums of neighbouring autocorrelations. Reference: Geyer
    (1992), "Practical Markov chain Monte Carlo", section 3.3.

    Args:
        terms: `[*batch, draws]`, in the order in which they were drawn; the first 2^20 are used.

    Returns:
        `[*batch]`; 1 where terms are equal.

    Example:
        >>> noise = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
        >>> round(float(autocorrelation_time(noise[1:] + noise[:-1])))
        2
    """
    x = terms.detach()[..., : limits.MAX_ORDERED_DRAWS].double()
    x = x - x.mean(-1, keepdim=True)
    draws = x.shape[-1]
    spectrum = torch.fft.rfft(x, n=2 * draws).abs().square()
    products = torch.fft.irfft(spectrum, n=2 * draws)[..., : draws // 2 * 2]
    pairs = products.unflatten(-1, (-1, 2)).sum(-1) / products[..., :1]
    positive = (pairs > 0).cumprod(-1) * pairs.cummin(-1).values
    time: Tensor = 2 * positive.nan_to_num(0.5).sum(-1) - 1
    return time.clamp(min=1.0)


class Chain(NamedTuple):
    """How correlated draws are, `[*batch]`: where neighbours are, by how much, and τ."""

    where: Tensor
    correlation: Tensor
    time: Tensor


def chain_of(terms: list[Tensor]) -> Chain | None:
    """Return how correlated neighbouring draws are; None where they are not.

    Args:
        terms: Each `[*batch, draws]`: what is averaged, or its parts. The longest autocorrelation
            time counts.

    Returns:
        The `Chain`, with a time of 1 where neighbours are not correlated.

    Example:
        >>> noise = torch.randn(1000, generator=torch.Generator().manual_seed(0))
        >>> chain_of([noise]) is None
        True
    """
    tests = [correlated_neighbours(each) for each in terms]
    alike = torch.stack([where for where, _ in tests]).any(0)
    if not bool(alike.any()):
        return None
    time = torch.stack([autocorrelation_time(each) for each in terms]).amax(0)
    size = torch.stack([size for _, size in tests]).amax(0)
    alike &= time > 1.0  # else sums of further autocorrelations make up for it
    return Chain(alike, size, torch.where(alike, time, 1.0)) if bool(alike.any()) else None


def of_a_chain(found: Estimate, chain: Chain) -> Estimate:
    """Widen the error of independent draws by what the draws of a chain need, and say so.

    Args:
        found: The estimate, with the error of independent draws.
        chain: As from `chain_of`.

    Returns:
        The estimate with a larger standard error and a warning where neighbours are correlated;
        without one where they are worth fewer than 100 independent draws.

    Example:
        >>> noise = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
        >>> chain = chain_of([noise[1:] + noise[:-1]])
        >>> print(of_a_chain(Estimate(0.0, 0.014, draws=9999), chain).brief)
        0.000 ± 0.020 nats
    """
    single, time = not chain.where.dim(), chain.time
    error = torch.as_tensor(found.standard_error, dtype=torch.float64) * time.sqrt()
    worth = found.draws / time
    found = replace(found, standard_error=float(error) if single else error)
    words = (
        f"neighbouring draws are correlated (by {chain.correlation.max():.2f}), as those of a "
        f"chain are: they are worth {worth.min():,.0f} independent draws, {{}}; shuffle draws that "
        "are independent and stand in an order of their own"
    )
    few = chain.where & (worth < limits.MIN_WORTH_OF_A_CHAIN)
    if bool(few.any()):
        text = words.format("too few for an error bar")
        found = found.without_error(text, where=None if single else few)
    enough = chain.where & ~few
    if not bool(enough.any()):
        return found
    text = words.format("and so the standard error is larger")
    return found.warn(text, where=None if single else enough)


def may_be_heavy(k_hat: Tensor, draws: int) -> Tensor:
    """Say where the variance may be infinite: k̂ and its own standard error reach ½.

    Below 200 draws k̂ says too little: nowhere.
    """
    may = k_hat + _scatter(k_hat, draws) > limits.FINITE_VARIANCE_PARETO_K
    return may & (draws >= limits.MIN_DRAWS_FOR_PARETO_K)


def about_control(name: str, skewness: Tensor, k_hat: Tensor, draws: int) -> Doubt:
    """Return the doubt about terms in which a few draws carry the mean of the control `name`.

    The sum of the terms may not show it: `r − 1` cancels what `log r` has of the tail, and the
    skewness of the terms with it. The limits are therefore those of a symmetric interval.

    Args:
        name: The control, as printed: "r − 1".
        skewness: `[*batch]`, of the mean of the control.
        k_hat: `[*batch]`, the Pareto shape of the control's tail.
        draws: How many terms were averaged.

    Returns:
        The `Doubt`, with the part of the batch that it applies to.

    Example:
        >>> bool(about_control("r − 1", torch.tensor(0.2), torch.tensor(0.0), 1000).where)
        True
    """
    size, heavy = skewness.abs(), may_be_heavy(k_hat, draws)
    return Doubt(
        size,
        (size > limits.MAX_SKEWNESS_OF_MEAN) | (heavy & (size > limits.MIN_SKEWNESS_FOR_TAIL)),
        f"a few draws carry the mean of {name} (skewness {{:.2f}}, or a heavy tail): "
        "what has not been drawn yet may matter",
    )


def _scatter(k_hat: Tensor, draws: int) -> Tensor:
    """Return the standard error of k̂ of M tail values, `(1 + k) / √M`."""
    return (1 + k_hat) / math.sqrt(max(tail_length(draws), 1))


def _few(draws: int, like: Tensor) -> Doubt:
    everywhere = torch.full_like(like, draws)
    words = "only {:.0f} draws: too few for an error bar"
    return Doubt(everywhere, everywhere < limits.MIN_DRAWS_FOR_ERROR, words)


def about_rare_events(draws: int, like: Tensor) -> Doubt:
    """Return the doubt about so few draws that an event of a chance up to 3/draws may be in none.

    For terms in which `r − 1` cancels `log r`: what is left at these draws says nothing then about
    the others.

    Args:
        draws: How many terms were averaged.
        like: `[*batch]`; only its shape is used.

    Returns:
        The `Doubt`, for all of the batch or none of it.

    Example:
        >>> bool(about_rare_events(100, torch.tensor(0.0)).where)
        True
    """
    rare = f"what happens once in {draws // 3}" if draws > 3 else "much"
    words = (
        f"only {{:.0f}} draw{'s'[: draws != 1]}: {rare} may not have been drawn yet, "
        "and r − 1 hides how much that is; draw 500, or use k1"
    )
    few = torch.full_like(like, draws)
    return Doubt(few, few < limits.MIN_DRAWS_FOR_RARE_EVENTS, words)


def about_bias(bias: Tensor, error: Tensor, words: str) -> Doubt:
    """Return the doubt about an error bar that a bias of about this size makes too short.

    A bias above 0.3 standard errors counts: a 95 % interval then covers less than 94 %.

    Args:
        bias: `[*batch]`, in the unit of the value.
        error: `[*batch]`, the standard error, in the same unit.
        words: The warning, with `{}` for |bias| / error.

    Returns:
        The `Doubt`, with the part of the batch that it applies to.

    Example:
        >>> bool(about_bias(torch.tensor(0.5), torch.tensor(0.1), "biased by {:.0f} errors").where)
        True
    """
    size = torch.where(bias == 0, 0.0, bias.abs() / error)
    return Doubt(size, size > limits.MAX_BIAS_IN_ERRORS, words)


_K_HAT, _NO_K_HAT = "Pareto k-hat {:.2f}", "too few for Pareto k-hat, which needs 25"


def judged(
    value: Tensor,
    error: Tensor,
    draws: int,
    k_hat: Tensor | None,
    doubts: list[Doubt],
    *,
    bias: Bias = "none",
    why: str = "",
    skewness: Tensor | None = None,
    rounding: Tensor | None = None,
) -> Estimate:
    """Return the `Estimate` in nats, floats for an empty batch, with the doubts that apply.

    An infinite value has an infinite error and no doubts; the words give the worst size.

    Args:
        value: `[*batch]`, in nats.
        error: `[*batch]`, the standard error, in nats.
        draws: How many terms were averaged.
        k_hat: `[*batch]`, the Pareto shape of the terms' tail, or None.
        doubts: What may be wrong with the error: warnings, or reasons to give none.
        bias: "none", "low", "high" or "unknown".
        why: The reason for the bias, in words.
        skewness: `[*batch]`, as in `Estimate`; 0 if None.
        rounding: `[*batch]`, as in `Estimate`, in nats; 0 if None.

    Returns:
        The `Estimate`, with a warning, or no error bar, where a doubt applies.

    Example:
        >>> judged(torch.tensor(0.5), torch.tensor(0.1), 1000, None, []).brief
        '0.50 ± 0.10 nats'
    """
    error = torch.where(value.isinf(), math.inf, error)
    more = [("k_hat", k_hat), ("skewness", skewness), ("rounding", rounding)]
    fields: dict[str, Any] = {name: part for name, part in more if part is not None}
    if value.dim():
        found = Estimate(value, error, draws, bias=bias, why=why, **fields)
    else:
        plain: dict[str, Any] = {name: float(part) for name, part in fields.items()}
        found = Estimate(float(value), float(error), draws, bias=bias, why=why, **plain)
    for doubt in doubts:
        where = (doubt.where & value.isfinite()).expand(value.shape)
        if bool(where.any()):
            size = doubt.size.expand(value.shape)[where].max().item()
            words = doubt.words.replace(_K_HAT, _NO_K_HAT) if math.isnan(size) else doubt.words
            text = words.format(size)
            text = (f"in {int(where.sum())} of {where.numel()}: " if where.dim() else "") + text
            part = where if where.dim() else None
            say = found.without_error if doubt.refused else found.warn
            found = say(text, where=part)
    return found


def estimate_of(
    influence: Tensor,
    value: Tensor,
    bias: Bias = "none",
    why: str = "",
    *,
    size: Tensor | None = None,
    more: list[Doubt] | None = None,
    rounding: Tensor | None = None,
) -> Estimate:
    """Return the `Estimate` of `value` whose error is the mean of centred terms `[*batch, draws]`.

    Its interval allows for their skewness.

    Args:
        influence: `[*batch, draws]`, centred terms, in nats.
        value: `[*batch]`, in nats.
        bias: "none", "low", "high" or "unknown".
        why: The reason for the bias, in words.
        size: `[*batch]`, as in `mean_of`; |value| if None.
        more: Further doubts.
        rounding: `[*batch]`, as in `Estimate`, in nats; 0 if None.

    Returns:
        The `Estimate`, with a warning, or no error bar, where a doubt applies.

    Example:
        >>> estimate_of(torch.tensor([-1.0, 1.0] * 20), torch.tensor(0.5)).brief
        '0.50 ± 0.16 nats'
    """
    error, skewness, k_hat = _moments(influence, value if size is None else size)
    draws = influence.shape[-1]
    doubts = [*about_skewed_terms(draws, skewness, k_hat), *(more or [])]
    allowed = allowance(skewness, k_hat)
    return judged(
        value, error, draws, k_hat, doubts, bias=bias, why=why, skewness=allowed, rounding=rounding
    )


def standard_error(influence: Tensor, size: Tensor) -> Tensor:
    """Return the standard error of the mean of centred terms, `√(Σδ² / (n (n − 1)))`.

    Args:
        influence: `[*batch, draws]`, centred terms.
        size: `[*batch]`, as in `mean_of`.

    Returns:
        `[*batch]`, in the unit of the terms; 0 where they are equal up to the rounding of `size`.

    Example:
        >>> terms = torch.tensor([-1.0, 1.0, -1.0, 1.0])
        >>> round(standard_error(terms, torch.tensor(0.0)).item(), 3)
        0.577
    """
    return _moments(influence, size)[0]


def mean_of(influence: Tensor, size: Tensor) -> tuple[Tensor, list[Doubt], Tensor]:
    """Return the error of the mean of centred terms, the doubts about a symmetric interval, and k̂.

    Args:
        influence: `[*batch, draws]`, centred terms.
        size: `[*batch]`, of what the terms are differences; terms below its rounding count as
            equal.

    Returns:
        The standard error `[*batch]`, the doubts of `about_terms`, and the terms' k̂ `[*batch]`.

    Example:
        >>> error, doubts, k_hat = mean_of(torch.tensor([-1.0, 1.0] * 20), torch.tensor(1.0))
        >>> error
        tensor(0.1601)
    """
    error, skewness, k_hat = _moments(influence, size)
    return error, about_terms(influence.shape[-1], skewness, k_hat), k_hat


def _moments(influence: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the error of the mean of centred terms, its skewness and the terms' k̂."""
    draws = influence.shape[-1]
    second, third = (influence**2).sum(-1), (influence**3).sum(-1)
    flat = second <= draws * (limits.RELATIVE_ROUNDING * size) ** 2
    second = torch.where(flat, 0.0, second)
    skewness = torch.where(flat, 0.0, third / second**1.5)
    k_hat = torch.full_like(second, math.nan)
    if tail_length(draws) >= limits.MIN_TAIL_LENGTH:
        top = torch.stack([influence, -influence]).topk(tail_length(draws) + 1, -1).values.flip(-1)
        k_hat = fit_tail(top[..., 1:] - top[..., :1])[0].amax(0)
    error = (second / (draws * (draws - 1))).sqrt()
    return error, skewness, k_hat
