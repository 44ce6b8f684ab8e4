"""A vocabulary in slices: the sums of each, joined to those of the whole, and gradients from them.

Which to use: nothing here directly; `hidden_states` walks over slices (blocks of logits that are
made and dropped), `sharded` has one a process. A slice is summed by any backend as if it were the
whole vocabulary; with P, Q the masses of the slices, the whole is

    KL(p‖q) = KL(P‖Q) + Σ_r P_r KL(p(·|r) ‖ q(·|r)),   H(p) = H(P) + Σ_r P_r H(p(·|r)),

on the scale of the largest logit of all. In a slice's sums `P_TOP` and `Q_TOP` count from the start
of the vocabulary, and `P_AT` and `Q_AT` are the logits at the id, 0 where another slice has it,
until `finished` makes log-probabilities of them.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from kullback.tokens.backends.interface import Slope, Sum, Task

__all__ = ["finished", "joined", "log_probs", "nothing", "packed", "slopes", "sums_of", "unpacked"]

BLOCK = 1 << 17  # logits looked at together where PyTorch's own operations do it

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
        return cls(*rows.reshape(-1, 2, rows.shape[-1]))

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
    p, *_ = given
    if not module.__name__.endswith("chunked"):  # which finds its own normalisers
        module.slopes(*given, task, sums, c, *out)
        return
    step = max(1, BLOCK // p.shape[-1])
    for start in range(0, len(p), step):
        rows = slice(start, start + step)
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
