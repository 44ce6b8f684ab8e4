"""KL(p‖q) from top-k log-probabilities: guaranteed bounds, and an unbiased estimate.

Which to use: `kl_bounds` when all that is known is some tokens' log-probabilities, as serving
interfaces return them; `kl_estimate` when there are also sampled tokens with both log-probabilities
known. Neither returns a KL: one returns `Bounds`, the other an `Estimate`.

What a side is known by is a `TopK`, or a tensor of all its log-probabilities, `[*batch, vocab]`.
Renormalising the top k, which is often done instead, gives a number on neither side of the KL.

Inside, a side becomes a `Known`; `lower` and `upper` are the least and the largest KL that the
masses of two of them allow, in float64, moved outwards by what rounding may have done to the lists.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from kullback.core import (
    ArgumentTypeError,
    Estimate,
    describe,
    message,
    require,
    require_type,
)
from kullback.exact import Bounds
from kullback.sampled import check_log_probs, is_sentinel, log_ratio, looks_odd
from kullback.tokens import limits

__all__ = ["Bounds", "Known", "TopK", "at", "kl_bounds", "kl_estimate", "lower", "upper"]


class Known(NamedTuple):
    """What is known of one side, float64: log is −inf for padding.

    rest: the mass of all other tokens; most: what one of them may have at most; floor: the least
    log-probability of one. bool `[*batch]`: full, whether every token of the vocabulary is listed;
    empty, whether others are known to have no mass; whole, that, or the listed masses sum to 1 to
    rounding. rounding `[*batch, k]`: how far logs may be off.
    """

    ids: Tensor
    log: Tensor
    rest: Tensor
    most: Tensor
    floor: float
    full: Tensor
    empty: Tensor
    whole: Tensor
    rounding: Tensor

    @property
    def slack(self) -> Tensor:
        """How far `rest` may be off."""
        return (self.log.exp() * self.rounding).sum(-1) + 2e-16

    @property
    def coarsest(self) -> Tensor:
        """The largest rounding, `[*batch]`."""
        return self.rounding.amax(-1) if self.ids.shape[-1] else torch.zeros_like(self.rest)


def at(side: Known, other: Known) -> Tensor:
    """Return what a side knows of the other's tokens, `[*batch, k]`: NaN where nothing."""
    if not side.ids.shape[-1]:
        return torch.full_like(other.ids, math.nan, dtype=torch.float64)
    order = side.ids.sort(-1)
    place = torch.searchsorted(order.values, other.ids.contiguous())
    place = place.clamp(max=side.ids.shape[-1] - 1)
    hit = (order.values.gather(-1, place) == other.ids) & (other.ids >= 0)
    return side.log.gather(-1, order.indices.gather(-1, place)).masked_fill(~hit, math.nan)


def lower(known: Known, other: Known, other_log: Tensor, *, known_is_p: bool) -> Tensor:
    """Return the least KL that the other side's masses allow, of the view with `known`'s tokens.

    One by one: `known`'s tokens; the other side's mass on those it does not list is chosen to make
    the KL least. One bucket: all other tokens. other_log: the other's logs at known's tokens, or
    NaN.
    """
    weights, unlisted = known.log.exp(), other_log.isnan()
    shared = other_log.masked_fill(unlisted, -math.inf).exp().sum(-1)
    free = other.slack.masked_fill(other.empty, 0.0)
    least = (other.log.exp().sum(-1) - shared).clamp(min=0.0)
    total = torch.maximum(1 - shared, least) + free
    found = _filled(weights * unlisted, other.most, known.rest, least, total)
    shares, bucket = torch.where(unlisted, found[..., :-1], other_log.exp()), found[..., -1]
    off = known.slack + other.slack
    rest = _nearer(known.rest, bucket, off.masked_fill(known.empty, 0.0))
    bucket = _nearer(bucket, rest, off)
    p = torch.cat([weights, rest[..., None]], -1)
    q = torch.cat([shares, bucket[..., None]], -1)
    p, q = (p, q) if known_is_p else (q, p)
    by_log = other.coarsest[..., None]
    by_mass = off[..., None] / shares.clamp(min=1e-300)
    rounding = known.rounding + torch.where(unlisted & (shares > 0), by_mass, by_log)
    rounding = torch.nn.functional.pad(rounding, (0, 1))  # the bucket's masses were moved already
    log_ratio = torch.where(p > 0, p.log() - q.log(), 0.0)
    size = torch.where(p > 0, p * log_ratio, 0.0)
    lost = 2 * rounding * (size.abs() + (q - p).abs()) + 4e-16 * (p + q)
    terms = q - p + size
    less = torch.where(terms == math.inf, terms, terms - lost).clamp(min=0.0)
    return torch.where((p == 0) & (q == 0), 0.0, less).sum(-1)


def _nearer(x: Tensor, to: Tensor, off: Tensor) -> Tensor:
    """Return x moved towards another number by at most `off`."""
    return x + torch.minimum(torch.maximum(to - x, -off), off)


def _filled(weights: Tensor, most: Tensor, bucket: Tensor, least: Tensor, total: Tensor) -> Tensor:
    """Spread `total` over tokens and a bucket so that a KL is least; return `[*batch, k + 1]`.

    weights `[*batch, k]`, bucket `[*batch]`: the masses of the other side, to which the shares are
    proportional, but for two limits: a token gets at most `most`, the bucket at least `least`.
    """
    shares = _proportional(weights, most, bucket, total)
    rest = total - shares.sum(-1)
    others = _proportional(weights, most, torch.zeros_like(bucket), (total - least).clamp(min=0.0))
    shares = torch.where((rest < least)[..., None], others, shares)
    return torch.cat([shares, (total - shares.sum(-1)).clamp(min=0.0)[..., None]], -1)


def _proportional(weights: Tensor, most: Tensor, bucket: Tensor, total: Tensor) -> Tensor:
    """Return `min(most, λ weights)`, with λ such that they and `λ bucket` sum to `total`."""
    order, places = weights.sort(-1, descending=True)
    above = torch.nn.functional.pad(order.cumsum(-1), (1, 0))  # weights of the first n, n = 0 … k
    behind = ((above[..., -1] + bucket)[..., None] - above).clamp(min=1e-300)
    count = torch.arange(above.shape[-1], device=above.device)
    most = most[..., None]
    factor = (total[..., None] - count * most).clamp(min=0.0) / behind
    fits = factor * torch.nn.functional.pad(order, (0, 1)) <= most
    full = fits.long().argmax(-1, keepdim=True)  # so many get the most they may
    shares = torch.minimum(factor.gather(-1, full) * order, most)
    shares = torch.where(count[:-1] < full, most, shares)
    return torch.empty_like(shares).scatter_(-1, places, shares)


def upper(p: Known, q: Known, q_at_p: Tensor, p_at_q: Tensor) -> Tensor:
    """Return the largest KL that is possible: +inf unless q is known where p may have mass."""
    mass, unlisted = p.log.exp(), q_at_p.isnan()
    floor = torch.where(q.empty, -math.inf, q.floor)
    at = torch.where(unlisted, floor[..., None], q_at_p)
    rounding = p.rounding + q.coarsest[..., None]
    known = torch.where(mass > 0, mass * (p.log - at), 0.0)
    off = 2 * rounding * (known.abs() + mass)
    known = torch.where(known == math.inf, known, known + off).sum(-1)
    rest = torch.where(p.whole, 0.0, p.rest + p.slack)
    steep = torch.minimum(p.most, rest).log() - floor
    tail = torch.where(rest > 0, rest * steep, 0.0).clamp(min=0.0)
    if bool(q.full.any()):
        log_q = q.log.masked_fill(~p_at_q.isnan(), math.inf)
        placed = 2 * rest * q.coarsest + _on_the_least(rest, p.most, log_q)
        tail = torch.where(q.full, placed, tail)
    return known + tail


def _on_the_least(rest: Tensor, most: Tensor, log_q: Tensor) -> Tensor:
    """Return Σ p log(p/q) of the mass `rest`, at most `most` a token, put where q is least."""
    log_q = log_q.sort(-1).values
    count = torch.arange(log_q.shape[-1], device=log_q.device)
    shares = (rest[..., None] - count * most[..., None]).clamp(min=0.0)
    shares = torch.minimum(shares, most[..., None]) * (log_q < math.inf)
    shares[..., 0] += (rest - shares.sum(-1)).clamp(min=0.0)
    placed = (shares > 0) & (log_q < math.inf)
    return torch.where(placed, shares * (shares.log() - log_q), 0.0).sum(-1) + 1e-15 * rest


@dataclass(frozen=True, slots=True)
class TopK:
    """Some tokens' log-probabilities under one distribution; of the others only the mass is known.

    A log-probability of −9999 or below, or of exactly −100, is what services send for "not among
    the top k": that token counts as not listed. −inf is a probability of 0.

    Args:
        ids: Integers `[*batch, k]`, no token twice in a row; −1 is padding.
        log_probs: `[*batch, k]`, in nats, normalised over the whole vocabulary, any floating type.
        top: Whether these are the most probable tokens, so that no other has more than the least of
            them. Say False when a list also holds tokens for another reason (the sampled one, say).
        vocab: How many tokens there are, None for unknown.
        floor: A log-probability that no token is below, None for unknown; with it `kl_bounds` can
            bound from above.
        rounding: How far a log-probability may be off, in nats: half a unit of the last digit that
            a service sends. The rounding of float types is known without it.

    Raises:
        ValueError: Shapes that differ, a token twice, masses that sum to more than 1.
        TypeError: Anything but an integer and a float tensor.

    Example:
        >>> TopK(torch.tensor([[7, 2]]), torch.tensor([[0.5, 0.3]]).log()).log_probs.exp()
        tensor([[0.5000, 0.3000]])
    """

    ids: Tensor
    log_probs: Tensor
    top: bool = True
    vocab: int | None = None
    floor: float | None = None
    rounding: float = 0.0

    def __post_init__(self) -> None:
        for name, x in (("ids", self.ids), ("log_probs", self.log_probs)):
            require_type(x, Tensor, name, "torch.as_tensor(...)")
        if self.ids.is_floating_point() or not self.log_probs.is_floating_point():
            got = f"{describe(self.ids)} and {describe(self.log_probs)}"
            raise ArgumentTypeError(message("ids and log_probs", "integers and floats", got))
        same = self.ids.shape == self.log_probs.shape and self.ids.ndim >= 1
        got = f"{list(self.ids.shape)} and {list(self.log_probs.shape)}"
        require(same, "ids and log_probs", "one shape [*batch, k]", got)
        require(self.rounding >= 0, "rounding", "at least 0 nats", self.rounding)
        listed = self.listed
        logs = self.log_probs.double().masked_fill(listed < 0, -math.inf)
        nan = logs.isnan()
        hint = "id −1 for padding, or leave the token out of the list"
        got = f"NaN at {int(nan.sum())} of {nan.numel()} places"
        require(not bool(nan.any()), "log_probs", "log-probabilities", got, hint)
        total = logs.exp().sum(-1)
        most = float(total.max()) if total.numel() else 0.0
        hint = "natural logarithms, normalised over the whole vocabulary"
        if bool((logs > 0).any()) and bool((logs[listed >= 0] >= 0).all()):
            hint = "log_probs.log(): these look like probabilities"
        own = torch.where(logs > -math.inf, logs.exp() * (1 + logs.abs()), 0.0).sum(-1)
        rounding = torch.finfo(self.log_probs.dtype).eps * (float(own.max()) if own.numel() else 0)
        slack = limits.MASS_SLACK + self.rounding + rounding
        require(most <= 1 + slack, "log_probs", "masses of at most 1", most, hint)
        order = listed.sort(-1).values
        twice = (order[..., 1:] == order[..., :-1]) & (order[..., 1:] >= 0)
        require(not bool(twice.any()), "ids", "every token once in a row", "one twice")

    @property
    def listed(self) -> Tensor:
        """The ids, int64, with −1 where a log-probability says "not among the top k".

        >>> TopK(torch.tensor([4, 7]), torch.tensor([-0.1, -9999.0])).listed
        tensor([ 4, -1])
        """
        return self.ids.long().masked_fill(is_sentinel(self.log_probs.detach()), -1)


def kl_bounds(p: TopK | Tensor, q: TopK | Tensor) -> Bounds:
    """Bound KL(p‖q) by what is known of p and q: `lower ≤ KL(p‖q) ≤ upper`, guaranteed.

    lower: the KL of a coarser view of the same distributions, which is never larger (data
        processing):
    the tokens known on both sides one by one, all others in one bucket. Where a list holds the
    `top` tokens, one that is missing from it has at most its least mass, and that is used too: the
    smallest KL that the masses allow. Rounding is taken off, so that it still holds.

    upper: +inf unless q's missing tokens are known to have mass: because q is known everywhere, or
    because it has a `floor`. Then all of p's unknown mass is put where q has least.

    A list is whole, with no tail, if it holds the `vocab` tokens, if it is a `top` list with a
    token of probability 0 in it, or if its masses sum to 1 to the rounding of float32 or better; of
    the last, the lower bound still allows a tail as large as that rounding. With everything known
    on both sides, or p's list whole and on q's, the bounds meet. They are no estimates of the KL.

    Args:
        p: A `TopK`, or all log-probabilities `[*batch, vocab]`.
        q: Likewise.

    Returns:
        `Bounds` of two tensors `[*batch]`, in nats, float64, without gradient.

    Raises:
        ValueError: Batches that differ.
        TypeError: Other types.

    Reference: Cover and Thomas (2006), theorem 2.7.1 and section 2.8.

    Example:
        >>> p = TopK(torch.tensor([3, 5]), torch.tensor([0.6, 0.3]).log())
        >>> q = TopK(torch.tensor([3, 8]), torch.tensor([0.2, 0.2]).log(), floor=-12.0)
        >>> lower, upper = kl_bounds(p, q)
        >>> round(float(lower), 3), round(float(upper), 3)
        (0.602, 4.868)
    """
    a, b = _known(p, "p"), _known(q, "q")
    batches = a.ids.shape[:-1], b.ids.shape[:-1]
    got = f"{list(batches[0])} and {list(batches[1])}"
    require(batches[0] == batches[1], "p and q", "the same positions", got)
    q_at_p, p_at_q = at(b, a), at(a, b)
    least = torch.maximum(
        lower(a, b, q_at_p, known_is_p=True), lower(b, a, p_at_q, known_is_p=False)
    )
    return Bounds(least, torch.maximum(upper(a, b, q_at_p, p_at_q), least))


def kl_estimate(
    p: TopK | Tensor,
    q: TopK | Tensor,
    ids: Tensor,
    log_p: Tensor,
    log_q: Tensor,
    *,
    estimator: str | float = "k1",
    full_support: bool = False,
    log_weights: Tensor | None = None,
) -> Estimate:
    """Estimate KL(p‖q) from sampled tokens, summing exactly the tokens that both lists know.

    With C the tokens on both lists, KL(p‖q) = p(C) KL(p(·|C)‖q(·|C)) + KL of the view in which C is
    one token. The first is summed; the second is a mean over the draws, in which every draw of C
    counts the same. So it is unbiased, as `log_ratio` is, and which of the listed tokens came adds
    no variance; without lists in common it is `log_ratio` itself.

    Args:
        p: A `TopK`, or all log-probabilities `[*batch, vocab]`.
        q: Likewise.
        ids: Integers `[*batch, draws]`, tokens drawn from p, with repetition.
        log_p: `[*batch, draws]`, their log-probabilities under p.
        log_q: The same under q.
        estimator: As in `kullback.sampled.log_ratio`.
        full_support: As in `kullback.sampled.log_ratio`; for k3, λ ≠ 0 and "best".
        log_weights: As in `kullback.sampled.log_ratio`; for tokens drawn from another distribution.

    Returns:
        An `Estimate` of `[*batch]`, in nats.

    Raises:
        ValueError: As in `log_ratio`, and for shapes that differ.
        TypeError: Other types.

    Example:
        >>> p = TopK(torch.tensor([0]), torch.tensor([0.9]).log())
        >>> q = TopK(torch.tensor([0]), torch.tensor([0.8]).log())
        >>> ids = torch.tensor([0, 0, 1, 0, 0, 2, 0, 0])
        >>> log_p = torch.tensor([0.9, 0.9, 0.05, 0.9, 0.9, 0.05, 0.9, 0.9]).log()
        >>> log_q = torch.tensor([0.8, 0.8, 0.1, 0.8, 0.8, 0.1, 0.8, 0.8]).log()
        >>> options = {"estimator": "best", "full_support": True}
        >>> round(kl_estimate(p, q, ids, log_p, log_q, **options).value, 4)
        0.0367
    """
    a, b = _known(p, "p"), _known(q, "q")
    same = ids.shape == log_p.shape and ids.shape[:-1] == a.ids.shape[:-1] == b.ids.shape[:-1]
    got = f"{list(ids.shape)}, {list(log_p.shape)} and {list(a.ids.shape)}, {list(b.ids.shape)}"
    require(same, "ids and log_p", "one shape [*batch, draws], the lists' batch", got)
    rows = {"log_p": log_p, "log_q": log_q}
    rows = {name: x.reshape(-1, x.shape[-1] if x.ndim else 1) for name, x in rows.items()}
    if looks_odd(list(rows.values()), None):
        check_log_probs(rows, allow=("-inf", "late"))  # draws may stand in any order
    q_log = at(b, a)
    both = ~q_log.isnan() & (a.log > -math.inf) & (q_log > -math.inf)
    p_part, q_part = (x.masked_fill(~both, -math.inf) for x in (a.log, q_log))
    p_all, q_all = p_part.logsumexp(-1), q_part.logsumexp(-1)
    within = (p_part.exp() * (p_part - q_part).masked_fill(~both, 0)).sum(-1)
    within -= torch.where(p_all > -math.inf, p_all.exp() * (p_all - q_all), 0)
    listed = a._replace(ids=a.ids.masked_fill(~both, -1), log=p_part)
    inside = ~at(listed, a._replace(ids=ids.long())).isnan()
    found = log_ratio(
        torch.where(inside, p_all[..., None], log_p.double()),
        torch.where(inside, q_all[..., None], log_q.double()),
        estimator=estimator,
        full_support=full_support,
        log_weights=log_weights,
    )
    return replace(found, value=found.value + (within if within.ndim else float(within)))


def _known(side: TopK | Tensor, name: str) -> Known:
    require_type(side, (TopK, Tensor), name, "TopK(ids, log_probs)")
    if isinstance(side, Tensor):
        require(side.ndim >= 1, name, "log-probabilities [*batch, vocab]", describe(side))
        ids = torch.arange(side.shape[-1], device=side.device).expand(side.shape)
        side = TopK(ids, side, vocab=side.shape[-1])
    ids = side.listed
    log = side.log_probs.detach().double().masked_fill(ids < 0, -math.inf)
    # a softmax taken in a float type is off by an ulp of 1 near log 1 = 0, and of the log elsewhere
    ulp = torch.finfo(side.log_probs.dtype).eps
    rounding = 2 * ulp * (1 + log.masked_fill(log == -math.inf, 0).abs())
    rounding += side.rounding
    mass = log.exp()
    slack = (mass * rounding).sum(-1) + 2e-16
    rest = (1 - mass.sum(-1)).clamp(min=0.0)
    to_rounding = ((1 - mass.sum(-1)).abs() <= slack) & (slack <= limits.WHOLE_SLACK)
    full = (ids >= 0).sum(-1) >= (math.inf if side.vocab is None else side.vocab)
    none_left = ((ids >= 0) & (mass == 0)).any(-1) & (rest <= slack) & side.top
    empty = full | none_left
    rest = rest.masked_fill(empty, 0.0)
    most = (rest + slack).masked_fill(empty, 0.0)
    if side.top and ids.shape[-1]:  # a token without mass in such a list: see `none_left`
        least = log.masked_fill((ids < 0) | (mass == 0), math.inf) + 2 * rounding
        most = torch.minimum(most, least.amin(-1).exp())
    floor = -math.inf if side.floor is None else side.floor
    return Known(ids, log, rest, most, floor, full, empty, empty | to_rounding, rounding)
