"""A vocabulary in slices: the sums of each, joined to those of the whole, and gradients from them.

Which to use: nothing here directly; `hidden_states` walks over slices (blocks of logits that are
made and dropped), `sharded` has one a process. A slice is summed by any backend as if it were the
whole vocabulary; with P, Q the masses of the slices, the whole is

    KL(p‖q) = KL(P‖Q) + Σ_r P_r KL(p(·|r) ‖ q(·|r)),   H(p) = H(P) + Σ_r P_r H(p(·|r)),

on the scale of the largest logit of all. In a slice's sums `P_TOP` and `Q_TOP` count from the start
of the vocabulary, and `P_AT` and `Q_AT` are the logits at the id, 0 where another slice has it,
until `finished` makes log-probabilities of them.

Jensen-Shannon, the skewed KLs and total variation have no such chain rule: they are sums of
f(p, q) once the normalisers are known (`Pointwise`). With `g_p = ∂f/∂p` and `g_q = ∂f/∂q`, the
gradient with respect to logits is

    p (g_p − Σ p g_p)   and   q (g_q − Σ q g_q),

so that a slice needs of all others but three numbers: the value and those two sums.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from kullback.exact import log_excess
from kullback.tokens import limits
from kullback.tokens.backends.interface import Rows, Slope, Sum, Task

__all__ = [
    "Pointwise",
    "Whole",
    "finished",
    "joined",
    "local",
    "log_probs",
    "nothing",
    "packed",
    "pointwise_gradient",
    "pointwise_sums",
    "slopes",
    "sums_of",
    "unpacked",
]

_TOPS, _LOGS = [Sum.P_MAX, Sum.Q_MAX], [Sum.P_LOG, Sum.Q_LOG]
_FIRSTS, _IDS = [Sum.P_TOP, Sum.Q_TOP], [Sum.P_AT, Sum.Q_AT]
_ENTROPIES, _DIVERGENCES = [Sum.P_ENTROPY, Sum.Q_ENTROPY], [Sum.KL, Sum.REVERSE_KL]
_ALONE, _LOST = [Sum.P_ALONE, Sum.Q_ALONE], [Sum.P_LOST, Sum.Q_LOST]


class Additive(NamedTuple):
    """What is added up over the slices, each `[2, n]`: p's, then q's; or KL(p‖q), then KL(q‖p)."""

    masses: Tensor
    entropies: Tensor  # times the mass
    divergences: Tensor  # times the mass
    shared: Tensor  # mass on tokens that both have
    alone: Tensor  # how many tokens the other side lacks
    lost: Tensor  # mass on those
    at_ids: Tensor  # the logits at the ids

    @classmethod
    def of(cls, rows: Tensor) -> Self:
        """Name the rows of a tensor `[14, n]`, in the order of the fields."""
        return cls._make(rows.reshape(-1, 2, rows.shape[-1]))

    def rows(self) -> Tensor:
        """Return one tensor `[14, n]`, which is added or sent at once."""
        return torch.cat(self)


def sums_of(
    p: Tensor,
    q: Tensor | None,
    ids: Tensor | None,
    keep: Tensor | None,
    task: Task,
    module: Any,
    *,
    start: int = 0,
    banned: bool = True,
) -> Tensor:
    """Return the sums `[len(Sum), n]` of a slice of both logits, by a backend's module.

    ids: `[n]`, counted from the slice's start, −1 where they lie in another slice. start: where
    the slice stands in the vocabulary. banned: whether a logit may be −inf. A slice in which one
    side has nothing at all is no distribution to a backend, but it is one here: of such a row only
    the other side's own sums are filled in, and `packed` knows the rest.
    """
    own: Tensor = module.sums(p, q, keep, task)
    if q is not None and banned:
        _fill_alone(own, p, q, task, module)
    own[_FIRSTS] += start
    for x, at in ((p, Sum.P_AT), (q, Sum.Q_AT)):
        if ids is not None and x is not None:
            logit = x.gather(-1, ids.clamp(min=0)[:, None])[:, 0].double()
            own[at] = logit.masked_fill(ids < 0, 0)
    return own


def _fill_alone(own: Tensor, p: Tensor, q: Tensor, task: Task, module: Any) -> None:
    none = (p.amax(-1) == -math.inf, q.amax(-1) == -math.inf)
    mine = (Sum.P_MAX, Sum.P_LOG, Sum.P_ENTROPY, Sum.P_TOP, Sum.Q_MAX)
    theirs = (Sum.Q_MAX, Sum.Q_LOG, Sum.Q_ENTROPY, Sum.Q_TOP, Sum.P_MAX)
    for x, lacks, other, at in ((p, none[1], none[0], mine), (q, none[0], none[1], theirs)):
        rows = (lacks & ~other).nonzero()[:, 0]
        if len(rows):
            alone = module.sums(x[rows], None, None, Task(("entropy",), task.temperature))
            own[:, rows] = 0.0
            top, log, entropy, first, other_top = at
            own[other_top, rows] = -math.inf
            own[top, rows], own[log, rows] = alone[Sum.P_MAX], alone[Sum.P_LOG]
            own[entropy, rows] = alone[Sum.P_ENTROPY]
            own[first, rows] = x[rows].argmax(-1).double()


def local(ids: Tensor | None, start: int, stop: int) -> Tensor | None:
    """Return ids counted from the start of a slice, −1 where they lie in another."""
    if ids is None:
        return None
    return torch.where((ids >= start) & (ids < stop), ids - start, -1)


def nothing(n: int, device: torch.device) -> Tensor:
    """Return the sums of no slice at all, which `joined` starts from.

    >>> nothing(2, torch.device("cpu"))[Sum.P_MAX]
    tensor([-inf, -inf], dtype=torch.float64)
    """
    sums = torch.zeros(len(Sum), n, dtype=torch.float64, device=device)
    sums[_TOPS] = -math.inf
    return sums


def joined(a: Tensor, b: Tensor, task: Task) -> Tensor:
    """Return the sums of two slices together, the second further on in the vocabulary."""
    tops = torch.maximum(*(x[_TOPS].nan_to_num(nan=-math.inf, neginf=-math.inf) for x in (a, b)))
    sums = unpacked(packed(a, tops, task) + packed(b, tops, task), tops)
    sums[_TOPS] = tops.masked_fill(sums[_LOGS].isnan() & (tops > -math.inf), math.nan)
    sums[_FIRSTS] = torch.where(b[_TOPS] > a[_TOPS], b[_FIRSTS], a[_FIRSTS])
    sums[Sum.NOTE] = torch.maximum(a[Sum.NOTE], b[Sum.NOTE])
    return sums


def finished(sums: Tensor, task: Task) -> Tensor:
    """Return the sums of the whole, with the logits at the ids made log-probabilities."""
    sums[_IDS] = (sums[_IDS] - sums[_TOPS]) / task.temperature - sums[_LOGS]
    return sums


def packed(own: Tensor, tops: Tensor, task: Task) -> Tensor:
    """Return what is added up over the slices: masses, expectations times masses, logits at ids."""
    none = own[_TOPS] == -math.inf
    shift = own[_TOPS].masked_fill(none, 0) - tops.masked_fill(none, 0)
    logs = shift / task.temperature + own[_LOGS]
    a, b = logs.masked_fill(none, 0)
    w, v = logs.exp().masked_fill(none, 0)
    no_p, no_q = none
    alone = own[_LOST].masked_fill(none.flip(0), 1)
    p_lost, q_lost = alone.masked_fill(none, 0)
    kl = own[Sum.KL].masked_fill(no_q, 1).masked_fill(no_p, 0)
    back = own[Sum.REVERSE_KL].masked_fill(no_p, 1).masked_fill(no_q, 0)
    entropies = own[_ENTROPIES].masked_fill(none, 0)
    p_shared, q_shared = w * (1 - p_lost), v * (1 - q_lost)
    return Additive(
        masses=torch.stack([w, v]),
        entropies=torch.stack([w * (entropies[0] - a), v * (entropies[1] - b)]),
        divergences=torch.stack([w * kl + p_shared * (a - b), v * back + q_shared * (b - a)]),
        shared=torch.stack([p_shared, q_shared]),
        alone=own[_ALONE].masked_fill(none.flip(0), 1).masked_fill(none, 0),
        lost=torch.stack([w * p_lost, v * q_lost]),
        at_ids=own[_IDS],
    ).rows()


def unpacked(total: Tensor, tops: Tensor) -> Tensor:
    """Return the `Sum`s of the whole from what was added up; its rows may lack tokens."""
    sums, added = total.new_zeros(len(Sum), total.shape[1]), Additive.of(total)
    masses, over = added.masses, 1 / added.masses
    logs = masses.log().masked_fill(masses == 0, math.nan)
    sums[_TOPS], sums[_LOGS], sums[_IDS] = tops, logs, added.at_ids
    sums[_ENTROPIES] = added.entropies * over + logs
    apart = torch.stack([logs[0] - logs[1], logs[1] - logs[0]])
    divergences = (added.divergences - added.shared * apart) * over
    sums[_DIVERGENCES] = divergences.clamp(min=0)  # −1e-16 where slices weigh the same
    sums[_ALONE] = added.alone.masked_fill(logs.isnan().any(0), 0)
    sums[_LOST] = added.lost * over
    sums[Sum.NOTE] = 1.0
    return sums


def slopes(
    given: Sequence[Any],
    task: Task,
    sums: Tensor,
    c: Tensor,
    out: Sequence[Tensor | None],
    module: Any,
) -> None:
    """Fill the gradients of a slice (see `Slope`), normalised by the sums of all slices.

    given: p, q, ids and mask of the rows, all but the first or None; out: p's and q's gradient.
    """
    p, q, ids, keep = given
    if not module.__name__.endswith("chunked"):  # which finds its own normalisers
        module.slopes(Rows(p, q, ids, keep), task, sums, c, out[0], out[1])
        return
    for rows in _some_rows(p):
        some = [x if x is None else x[rows] for x in given]
        part = [x if x is None else x[rows] for x in out]
        _slopes(some, task, sums[:, rows, None], c[:, rows, None], part)


def _slopes(
    given: Sequence[Any], task: Task, sums: Tensor, c: Tensor, out: Sequence[Tensor | None]
) -> None:
    p, q, at, keep = given
    p_log, q_log, ratio = log_probs(p, p if q is None else q, sums, task.temperature)
    q = p if q is None else q
    p_has, q_has = p != -math.inf, q != -math.inf
    nan = 0 * sums[Sum.P_LOG].to(ratio.dtype) + 0 * sums[Sum.Q_LOG].to(ratio.dtype)
    ratio = torch.where(p_has & q_has, ratio, nan)
    p_prob, q_prob = p_log.exp(), q_log.exp()
    close = (ratio.abs() < 1) & p_has & q_has
    step = torch.where(close, p_prob * ratio.clamp(-1, 1).expm1(), q_prob - p_prob)
    for grad, first, has, log, prob in (
        (out[0], Slope.P_ONE, p_has, p_log, p_prob),
        (out[1], Slope.Q_ONE, q_has, q_log, q_prob),
    ):
        if grad is None:
            continue
        one, on_ratio, on_log, _, on_step, on_id = c[first : first + 6].to(ratio.dtype)
        log = log.where(has, 0)
        found = prob * (one + on_ratio * ratio + on_log * log) + on_step * step
        if at is not None:
            found += on_id * (torch.arange(p.shape[-1], device=p.device) == at[:, None])
        found = found.where(has, nan)
        grad.copy_(found if keep is None else found.masked_fill(~keep[:, None], 0))


def log_probs(
    p: Tensor, q: Tensor, sums: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log p, log q and log q − log p `[n, slice]`, given the sums `[len(Sum), n, 1]`.

    The difference of the logits is taken first: between close logits it is exact.
    """
    dtype = torch.promote_types(torch.promote_types(p.dtype, q.dtype), torch.float32)
    p, q = p.to(dtype), q.to(dtype)
    logs = [
        (x - sums[top].to(dtype)) / temperature - sums[log].to(dtype)
        for x, top, log in ((p, Sum.P_MAX, Sum.P_LOG), (q, Sum.Q_MAX, Sum.Q_LOG))
    ]
    gap = (sums[Sum.Q_MAX] - sums[Sum.P_MAX]) / temperature + sums[Sum.Q_LOG] - sums[Sum.P_LOG]
    return logs[0], logs[1], (q - p) / temperature - gap.to(dtype)


class Pointwise(NamedTuple):
    """Σ f(p, q): which f, and the weight β of p in the mixture m = β p + (1−β) q.

    kind: "jsd", β KL(p‖m) + (1−β) KL(q‖m); "skew_forward", KL(p‖m); "tv", ½ Σ |p − q|.
    """

    kind: str
    weight: float = 0.5
    temperature: float = 1.0


class Whole(NamedTuple):
    """Over all slices: `[len(Sum), n]`; value, Σ p g_p and Σ q g_q of a `Pointwise`, `[3, n]`."""

    sums: Tensor
    pointwise: Tensor


def pointwise_sums(p: Tensor, q: Tensor, sums: Tensor, what: Pointwise) -> Tensor:
    """Return value, Σ p g_p and Σ q g_q of a slice, `[3, n]`, float64; p, q: logits `[n, slice]`.

    sums: `[len(Sum), n]`, of which the maxima and log-normalisers of the whole are used.
    """
    found = sums.new_zeros(3, len(p))
    for rows in _some_rows(p):
        for row, each in enumerate(_densities(p[rows], q[rows], sums[:, rows, None], what)[:3]):
            found[row, rows] = each.sum(-1, dtype=torch.float64)
    return found


def pointwise_gradient(
    p: Tensor,
    q: Tensor,
    whole: Whole,
    scale: Tensor,
    what: Pointwise,
    out: tuple[Tensor | None, Tensor | None],
) -> None:
    """Fill `scale` `[n]` times the gradients with respect to p's and q's logits of a slice.

    whole: added up over all slices. out: `[n, slice]`, or None: not wanted.
    """
    for rows in _some_rows(p):
        _, *pulls = _densities(p[rows], q[rows], whole.sums[:, rows, None], what)
        totals = whole.pointwise[1:]
        for grad, pull, prob, total in zip(out, pulls[:2], pulls[2:], totals, strict=True):
            if grad is not None:
                inner = pull - prob * total[rows, None].to(prob.dtype)
                grad[rows] = inner * (scale[rows, None] / what.temperature).to(prob.dtype)


def _some_rows(p: Tensor) -> Iterator[slice]:
    """Yield some rows at a time: what is worked on together stays small."""
    step = max(1, limits.BLOCK // p.shape[-1])
    for start in range(0, len(p), step):
        yield slice(start, start + step)


def _densities(
    p: Tensor, q: Tensor, sums: Tensor, what: Pointwise
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return f ≥ 0, p g_p, q g_q, p and q of every token; where p = 0, p g_p is 0."""
    log_p, log_q, step = log_probs(p, q, sums, what.temperature)
    p_has, q_has = p != -math.inf, q != -math.inf
    step = step.masked_fill(~(p_has | q_has), 0.0)
    p, q = log_p.exp(), log_q.exp()
    if what.kind == "tv":
        apart = torch.where(step.abs() < 1, p * step.clamp(-1, 1).expm1(), q - p)
        side = 0.5 * apart.sign()
        return 0.5 * apart.abs(), -side * p, side * q, p, q
    if what.kind == "skew_forward":
        return *_skewed(p, q, step, what.weight), p, q
    beta = what.weight
    x, y, mixture = _mixed(p, q, step, beta)
    f = beta * _excess(p, x, mixture) + (1 - beta) * _excess(q, y, mixture)
    return f, -beta * _product(p, x), (beta - 1) * _product(q, y), p, q


def _skewed(p: Tensor, q: Tensor, step: Tensor, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the terms of KL(p‖m), m = w p + (1−w) q, and p g_p, q g_q but for constants in g."""
    x, _, mixture = _mixed(p, q, step, weight)
    share = torch.expm1(-x)  # p/m − 1
    there = -_product(p, x) - weight * p * share
    over = torch.where(q == 0, 0.0, q * share)
    return _excess(p, x, mixture), there, (weight - 1) * over


def _mixed(p: Tensor, q: Tensor, step: Tensor, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return log m/p, log m/q and m, with the digits of step = log q/p where that is small."""
    less = torch.log1p((1 - weight) * torch.expm1(step.clamp(max=0.0)))
    more = torch.log1p(weight * torch.expm1(-step.clamp(min=0.0)))
    x = torch.where(step <= 0, less, step + more)
    y = torch.where(step <= 0, less - step, more)
    return x, y, weight * p + (1 - weight) * q


def _excess(p: Tensor, x: Tensor, mixture: Tensor) -> Tensor:
    """Return p (e^x − 1 − x) where m = p e^x: m where p is 0."""
    near = p * log_excess(x.clamp(max=1.0))
    return torch.where(x < 1, near, mixture - p - _product(p, x))


def _product(p: Tensor, x: Tensor) -> Tensor:
    return torch.where(p == 0, 0.0, p * x)
