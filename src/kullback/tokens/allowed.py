"""The least and the largest KL(p‖q) that lists of known masses allow; `truncated` is the face.

Which to use: `lower` and `upper` of two `Known` sides. All in float64, and made smaller or larger
by what rounding may have done to the lists, so that a bound is one.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Known", "at", "lower", "upper"]


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


def lower(known: Known, other: Known, seen: Tensor, *, known_is_p: bool) -> Tensor:
    """Return the least KL that the other side's masses allow, of the view with `known`'s tokens.

    One by one: `known`'s tokens; the other side's mass on those it does not list is chosen to make
    the KL least. One bucket: all other tokens. seen: the other's logs at known's tokens, or NaN.
    """
    weights, unlisted = known.log.exp(), seen.isnan()
    shared = seen.masked_fill(unlisted, -math.inf).exp().sum(-1)
    free = other.slack.masked_fill(other.empty, 0.0)
    least = (other.log.exp().sum(-1) - shared).clamp(min=0.0)
    total = torch.maximum(1 - shared, least) + free
    found = _filled(weights * unlisted, other.most, known.rest, least, total)
    shares, bucket = torch.where(unlisted, found[..., :-1], seen.exp()), found[..., -1]
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
    log_ratio = torch.where(mass > 0, p.log - at, 0.0)
    rounding = p.rounding + q.coarsest[..., None]
    known = torch.where(mass > 0, mass * log_ratio, 0.0)
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
