"""Rows of logits cut over processes: sums joined by two all-reduces, gradients without any.

Which to use: nothing here directly; `parallel` is the face. A slice's sums come from any backend,
are put on the scale of the largest logit of all slices, and added up.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from kullback.core import require

from . import algebra
from .backends import choose
from .task import Slope, Sum, Task

__all__ = ["Sharded"]

_BLOCK = 1 << 18  # logits looked at together in the backward pass


class Sharded(torch.autograd.Function):
    """The values of `task` `[wants, n]`, from a slice of both logits, `[n, slice]`."""

    @staticmethod
    def forward(
        ctx: Any,
        p: Tensor,
        q: Tensor | None,
        ids: Tensor | None,
        keep: Tensor | None,
        task: Task,
        backend: str,
        group: Any,
    ) -> Tensor:
        """Sum the slice, join the slices, and make the values."""
        own = _own(p, q, keep, task, choose(backend, p, q, task))
        at = None
        if ids is not None or task.asks("same_top"):
            start, vocab = _place(p, group)
            own[Sum.P_TOP] += start
            own[Sum.Q_TOP] += start
            at = _local(ids, keep, start, vocab, p.shape[-1])
        sums = _joined(own, p, q, at, task, group)
        ctx.save_for_backward(p, q, at, keep, sums)
        ctx.task, ctx.backend = task, backend
        found = algebra.values(sums, task)
        found = found if keep is None else found.masked_fill(~keep, 0)
        wide = torch.float64 in (p.dtype, None if q is None else q.dtype)
        return found if wide else found.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads: Tensor) -> Any:
        """Return the gradients of the slice; nothing is sent."""
        p, q, at, keep, sums = ctx.saved_tensors
        c = algebra.coefficients(sums, grads, ctx.task)
        pair = [
            torch.empty_like(x) if wanted else None
            for x, wanted in zip((p, q), ctx.needs_input_grad[:2], strict=True)
        ]
        module = choose(ctx.backend, p, q, ctx.task)
        if not module.__name__.endswith("chunked"):  # which finds its own normalisers
            module.slopes(p, q, at, keep, ctx.task, sums, c, *pair)
            return *pair, None, None, None, None, None
        step = max(1, _BLOCK // p.shape[-1])
        for start in range(0, len(p), step):
            rows = slice(start, start + step)
            some = [x if x is None else x[rows] for x in (p, q, at, keep)]
            out = [x if x is None else x[rows] for x in pair]
            _slopes(some, ctx.task, sums[:, rows, None], c[:, rows, None], out)
        return *pair, None, None, None, None, None


def _own(p: Tensor, q: Tensor | None, keep: Tensor | None, task: Task, module: Any) -> Tensor:
    """Return the sums of this slice, also where one side has nothing in it, which backends refuse.

    Of such a row only the other side's own sums are filled in; `_packed` knows the rest.
    """
    own: Tensor = module.sums(p, q, keep, task)
    if q is None:
        return own
    none = (p.amax(-1) == -math.inf, q.amax(-1) == -math.inf)
    for x, lacks, other, first in ((p, none[1], none[0], 0), (q, none[0], none[1], 1)):
        rows = (lacks & ~other).nonzero()[:, 0]
        if len(rows):
            alone = module.sums(x[rows], None, None, Task(("entropy",), task.temperature))
            own[:, rows] = 0.0
            own[2 - 2 * first, rows] = -math.inf  # the other side's largest logit
            own[2 * first, rows], own[2 * first + 1, rows] = alone[Sum.P_MAX], alone[Sum.P_LOG]
            own[Sum.P_ENTROPY + first, rows] = alone[Sum.P_ENTROPY]
            own[Sum.P_TOP + first, rows] = x[rows].argmax(-1).double()
    return own


def _place(p: Tensor, group: Any) -> tuple[int, int]:
    """Return how many tokens lie in the slices before this one, and how many in all."""
    sizes = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=p.device)
    rank = dist.get_rank(group)
    sizes[rank] = p.shape[-1]
    dist.all_reduce(sizes, group=group)
    return int(sizes[:rank].sum()), int(sizes.sum())


def _local(
    ids: Tensor | None, keep: Tensor | None, start: int, vocab: int, own: int
) -> Tensor | None:
    """Return ids counted from the start of this slice, −1 where they lie in another."""
    if ids is None:
        return None
    ids = ids if keep is None else ids.where(keep, 0)
    wrong = (ids < 0) | (ids >= vocab)
    got = ids[wrong][0].item() if bool(wrong.any()) else None
    hint = "mask= for positions that have no token (-100, padding)"
    require(got is None, "ids", f"token ids from 0 to {vocab - 1}", got, hint)
    return (ids - start).where((ids >= start) & (ids < start + own), -1)


def _joined(
    own: Tensor, p: Tensor, q: Tensor | None, at: Tensor | None, task: Task, group: Any
) -> Tensor:
    """Return the sums of the whole vocabulary, `[len(Sum), n]`."""
    tops = own[[Sum.P_MAX, Sum.Q_MAX]].nan_to_num(nan=-math.inf, neginf=-math.inf)
    dist.all_reduce(tops, dist.ReduceOp.MAX, group=group)
    packed = _packed(own, tops, task)
    logits = [_logit(x, at) for x in (p, p if q is None else q)]
    packed = torch.cat([packed, torch.stack(logits)])
    dist.all_reduce(packed, group=group)
    sums = _unpacked(packed, tops)
    if at is not None:
        for row, logit, top, log in (
            (Sum.P_AT, packed[-2], Sum.P_MAX, Sum.P_LOG),
            (Sum.Q_AT, packed[-1], Sum.Q_MAX, Sum.Q_LOG),
        ):
            sums[row] = (logit - sums[top]) / task.temperature - sums[log]
    if task.asks("same_top"):
        firsts = own[[Sum.P_TOP, Sum.Q_TOP]].masked_fill(own[[Sum.P_MAX, Sum.Q_MAX]] < tops, 1e18)
        dist.all_reduce(firsts, dist.ReduceOp.MIN, group=group)
        sums[Sum.P_TOP], sums[Sum.Q_TOP] = firsts
    return sums


def _logit(x: Tensor, at: Tensor | None) -> Tensor:
    """Return each row's logit at its id, 0 where another slice has it."""
    if at is None:
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)
    found = x.gather(-1, at.clamp(min=0)[:, None])[:, 0].double()
    return found.masked_fill(at < 0, 0)


def _packed(own: Tensor, tops: Tensor, task: Task) -> Tensor:
    """Return what is added up over the slices: masses, and expectations times masses."""
    none = own[[Sum.P_MAX, Sum.Q_MAX]] == -math.inf
    shift = own[[Sum.P_MAX, Sum.Q_MAX]].masked_fill(none, 0) - tops.masked_fill(none, 0)
    logs = shift / task.temperature + own[[Sum.P_LOG, Sum.Q_LOG]]
    a, b = logs.masked_fill(none, 0)
    w, v = logs.exp().masked_fill(none, 0)
    no_p, no_q = none
    alone = own[[Sum.P_LOST, Sum.Q_LOST]].masked_fill(none.flip(0), 1)
    p_lost, q_lost = alone.masked_fill(none, 0)
    kl = own[Sum.KL].masked_fill(no_q, 1).masked_fill(no_p, 0)
    back = own[Sum.REVERSE_KL].masked_fill(no_p, 1).masked_fill(no_q, 0)
    entropies = own[[Sum.P_ENTROPY, Sum.Q_ENTROPY]].masked_fill(none, 0)
    p_shared, q_shared = w * (1 - p_lost), v * (1 - q_lost)
    return torch.stack(
        [
            w,
            v,
            w * (entropies[0] - a),
            v * (entropies[1] - b),
            w * kl + p_shared * (a - b),
            v * back + q_shared * (b - a),
            p_shared,
            q_shared,
            *own[[Sum.P_ALONE, Sum.Q_ALONE]].masked_fill(none.flip(0), 1).masked_fill(none, 0),
            w * p_lost,
            v * q_lost,
        ]
    )


def _unpacked(packed: Tensor, tops: Tensor) -> Tensor:
    """Return the `Sum`s of the whole from what was added up."""
    sums = packed.new_zeros(len(Sum), packed.shape[1])
    masses, over = packed[:2], 1 / packed[:2]
    logs = masses.log().masked_fill(masses == 0, math.nan)
    sums[[Sum.P_MAX, Sum.Q_MAX]] = tops
    sums[[Sum.P_LOG, Sum.Q_LOG]] = logs
    sums[[Sum.P_ENTROPY, Sum.Q_ENTROPY]] = packed[2:4] * over + logs
    apart = torch.stack([logs[0] - logs[1], logs[1] - logs[0]])
    divergences = (packed[4:6] - packed[6:8] * apart) * over
    sums[[Sum.KL, Sum.REVERSE_KL]] = divergences.clamp(min=0)  # −1e-16 where slices weigh the same
    sums[[Sum.P_ALONE, Sum.Q_ALONE]] = packed[8:10].masked_fill(logs.isnan().any(0), 0)
    sums[[Sum.P_LOST, Sum.Q_LOST]] = packed[10:12] * over
    sums[Sum.NOTE] = 1.0  # other slices may lack tokens: take care of all cases
    return sums


def _slopes(
    given: Sequence[Any], task: Task, sums: Tensor, c: Tensor, out: Sequence[Tensor | None]
) -> None:
    """Fill the gradients of some rows (see `Slope`), normalised by the sums of all slices.

    given: p, q, ids and mask of the rows, all but the first or None; out: p's and q's gradient.
    """
    p, q, at, keep = given
    q = p if q is None else q
    dtype = torch.promote_types(torch.promote_types(p.dtype, q.dtype), torch.float32)
    p_log = _log_prob(p, sums[Sum.P_MAX], sums[Sum.P_LOG], task, dtype)
    q_log = _log_prob(q, sums[Sum.Q_MAX], sums[Sum.Q_LOG], task, dtype)
    p_has, q_has = p != -math.inf, q != -math.inf
    gap = (sums[Sum.Q_MAX] - sums[Sum.P_MAX]) / task.temperature
    gap += sums[Sum.Q_LOG] - sums[Sum.P_LOG]
    ratio = (q.to(dtype) - p.to(dtype)) / task.temperature - gap.to(dtype)
    ratio = torch.where(p_has & q_has, ratio, 0 * gap.to(dtype))
    p_prob, q_prob = p_log.exp(), q_log.exp()
    close = (ratio.abs() < 1) & p_has & q_has
    step = torch.where(close, p_prob * ratio.clamp(-1, 1).expm1(), q_prob - p_prob)
    for grad, first, has, log, prob in (
        (out[0], Slope.P_ONE, p_has, p_log, p_prob),
        (out[1], Slope.Q_ONE, q_has, q_log, q_prob),
    ):
        if grad is None:
            continue
        one, on_ratio, on_log, _, on_step, on_id = c[first : first + 6].to(dtype)
        log = log.where(has, 0)
        found = prob * (one + on_ratio * ratio + on_log * log) + on_step * step
        if at is not None:
            found += on_id * (torch.arange(p.shape[-1], device=p.device) == at[:, None])
        found = found.where(has, 0 * gap.to(dtype))
        grad.copy_(found if keep is None else found.masked_fill(~keep[:, None], 0))


def _log_prob(x: Tensor, top: Tensor, log: Tensor, task: Task, dtype: torch.dtype) -> Tensor:
    return (x.to(dtype) - top.to(dtype)) / task.temperature - log.to(dtype)
