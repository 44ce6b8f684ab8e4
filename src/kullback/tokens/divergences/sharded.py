"""The same values when the vocabulary is cut over the processes of a `torch.distributed` group.

`measure_shards` is what `sources.Sharded` calls. Nothing of the size of a vocabulary is sent:
forward, two all-reduces of a few float64 numbers a position (the maxima, then sums; one more for
`same_top` and for `js`); backward, none.

Each process sums its slice as if it were the whole vocabulary, by any backend, and the slices are
joined by the chain rule: with P, Q the masses of the slices,

    KL(p‖q) = KL(P‖Q) + Σ_r P_r KL(p(·|r) ‖ q(·|r)),   H(p) = H(P) + Σ_r P_r H(p(·|r)).

Every process of the group gets the same values, so every one should go on to compute the same loss;
the gradient each gets is that of its own slice, whole: it must be neither averaged nor summed over
the group. Jensen-Shannon, the skewed KLs and total variation, which no chain rule cuts, are summed
once the normalisers are known: one all-reduce more.
"""

import math
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from kullback.core import require
from kullback.tokens.backends import interface
from kullback.tokens.backends.choose import choose
from kullback.tokens.backends.interface import Sum, Task

from . import slices
from .logits import Ask, check_memory, check_options, common, refuse_nan, spread_mask
from .slices import Pointwise, Whole

__all__ = ["measure_shards"]


class _Sums(torch.autograd.Function):
    """The values of `task` `[wants, n]`, from a slice of both logits, `[n, slice]`."""

    @staticmethod
    def forward(
        ctx: Any,
        p: Tensor,
        q: Tensor | None,
        ask: Ask,
        group: Any,
    ) -> Tensor:
        """Sum the slice, join the slices, and make the values; ids and mask of `ask`: `[n]`."""
        task, ids, keep = ask.task, ask.ids, ask.mask
        at, start = None, 0
        if ids is not None or task.asks("same_top"):
            start, vocab = _place(p, group)
            at = _local(ids, keep, start, vocab, p.shape[-1])
        module = choose(ask.backend, p, q, task)
        own = slices.sums_of(p, q, at, keep, task, module, start=start)
        sums = _joined(own, task, group)
        ctx.save_for_backward(*interface.for_backward(p, q, at, keep), sums)
        ctx.task, ctx.backend = task, ask.backend
        return _rounded(interface.values(sums, task), p, q, keep)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads: Tensor) -> Any:
        """Return the gradients of the slice; nothing is sent."""
        p, q, at, keep, sums = ctx.saved_tensors
        pair = _rooms(ctx, p, q)
        c = interface.coefficients(sums, grads, ctx.task)
        module = choose(ctx.backend, p, q, ctx.task)
        slices.slopes((p, q, at, keep), ctx.task, sums, c, pair, module)
        return *pair, None, None


class _Pointwise(torch.autograd.Function):
    """A pointwise divergence `[n]` from a slice of both logits: one all-reduce more."""

    @staticmethod
    def forward(
        ctx: Any,
        p: Tensor,
        q: Tensor,
        ask: Ask,
        what: Pointwise,
        group: Any,
    ) -> Tensor:
        """Find the normalisers of the whole, then sum the slice."""
        task, keep = Task(("kl",), what.temperature), ask.mask
        own = slices.sums_of(p, q, None, keep, task, choose(ask.backend, p, q, task))
        sums = _joined(own, task, group)
        found = slices.pointwise_sums(p, q, sums, what)
        dist.all_reduce(found, group=group)
        ctx.save_for_backward(*interface.for_backward(p, q, keep), sums, found)
        ctx.what = what
        return _rounded(found[0], p, q, keep)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Return the gradients of the slice; nothing is sent."""
        p, q, keep, sums, found = ctx.saved_tensors
        pair = _rooms(ctx, p, q)
        slices.pointwise_gradient(p, q, Whole(sums, found), grad, ctx.what, pair)
        for each in pair:
            if each is not None and keep is not None:
                each.masked_fill_(~keep[:, None], 0)
        return *pair, None, None, None


def _rooms(ctx: Any, p: Tensor, q: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return where the gradients that are wanted go."""
    wanted = ctx.needs_input_grad
    to_q = None if q is None or not wanted[1] else torch.empty_like(q)
    return torch.empty_like(p) if wanted[0] else None, to_q


def _rounded(found: Tensor, p: Tensor, q: Tensor | None, keep: Tensor | None) -> Tensor:
    """Return values in float64 only where a side is, 0 where the mask is False."""
    found = found if keep is None else found.masked_fill(~keep, 0)
    wide = torch.float64 in (p.dtype, None if q is None else q.dtype)
    return found if wide else found.float()


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
    return slices.local(ids, start, start + own)


def _joined(own: Tensor, task: Task, group: Any) -> Tensor:
    """Return the sums of the whole vocabulary, `[len(Sum), n]`."""
    tops = own[[Sum.P_MAX, Sum.Q_MAX]].nan_to_num(nan=-math.inf, neginf=-math.inf)
    dist.all_reduce(tops, dist.ReduceOp.MAX, group=group)
    total = slices.packed(own, tops, task)
    dist.all_reduce(total, group=group)
    sums = slices.finished(slices.unpacked(total, tops), task)
    if task.asks("same_top"):
        firsts = own[[Sum.P_TOP, Sum.Q_TOP]].masked_fill(own[[Sum.P_MAX, Sum.Q_MAX]] < tops, 1e18)
        dist.all_reduce(firsts, dist.ReduceOp.MIN, group=group)
        sums[Sum.P_TOP], sums[Sum.Q_TOP] = firsts
    return sums


def measure_shards(p: Tensor, q: Tensor | None, ask: Ask, group: Any) -> Tensor:
    """Return the values that are asked for, `[wants, *batch]`, of this process's slices.

    Errors: `ValueError` without a process group, and those of `logits.measure`.
    """
    name, task = "logits" if q is None else "p_logits", ask.task
    p = check_memory(p, name)
    check_options(task, ask.nan, None)
    hint = "drop the padding from the last slices"
    require(ask.align is None, "align", "None for a vocabulary cut over processes", ask.align, hint)
    if q is not None:
        p, q = common(p, check_memory(q, "q_logits"), None)
    sums = ask.backend != "reference"
    require(sums, "backend", "one that sums rows", repr(ask.backend), "'auto' or 'chunked'")
    hint = "torch.distributed.init_process_group(...)"
    require(dist.is_initialized(), "group", "a process group", "none", hint)
    keep = spread_mask(ask.mask, p)
    batch, vocab = p.shape[:-1], p.shape[-1]
    flat = [x if x is None else x.reshape(-1, vocab) for x in (p, q)]
    flat = [x if x is None or x.stride(-1) == 1 else x.contiguous() for x in flat]
    ids, keep = (x if x is None else x.reshape(-1) for x in (ask.ids, keep))
    rows = replace(ask, ids=ids, mask=keep)
    found: Tensor
    if ask.what is not None:
        found = _Pointwise.apply(*flat, rows, ask.what, group)  # type: ignore[no-untyped-call]
    else:
        found = _Sums.apply(*flat, rows, group)  # type: ignore[no-untyped-call]
    found = found.reshape(-1, *batch)
    if ask.nan == "refuse":
        refuse_nan(found.detach(), name if q is None else f"{name} and q_logits")
    return found
