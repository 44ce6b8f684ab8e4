"""Rows of logits cut over processes: slices joined by two all-reduces, gradients without any.

Which to use: nothing here directly; `parallel` is the face, `slices` has the arithmetic.

The same values when the vocabulary is cut over the processes of a `torch.distributed` group.

Which to use: `kl` and its like here where tensor-parallel training leaves every process with the
logits of its own slice of the vocabulary, `[*batch, slice]`. Nothing of the size of a vocabulary is
sent: forward, two all-reduces of a few float64 numbers a position (the maxima, then sums; one
more for `same_top` and for `js`); backward, none.

Each process sums its slice as if it were the whole vocabulary, by any backend, and the slices are
joined by the chain rule: with P, Q the masses of the slices,

    KL(p‖q) = KL(P‖Q) + Σ_r P_r KL(p(·|r) ‖ q(·|r)),   H(p) = H(P) + Σ_r P_r H(p(·|r)).

Every process of the group gets the same values, so every one should go on to compute the same loss;
the gradient each gets is that of its own slice, whole: it must be neither averaged nor summed over
the group. The rules on masks, temperature and tokens without mass are those of `divergences`.
Jensen-Shannon, which no chain rule cuts, sums once the normalisers are known: one all-reduce more.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from kullback.core import require
from kullback.tokens.backends import interface
from kullback.tokens.backends.choose import choose
from kullback.tokens.backends.interface import Sum, Task, Value

from . import pointwise, slices
from .logits import Comparison, check_logits, check_options, common, refuse_nan, spread_mask
from .pointwise import Pointwise

__all__ = [
    "Sharded",
    "ShardedPointwise",
    "compare",
    "cross_entropy",
    "entropy",
    "jeffreys",
    "js",
    "kl",
    "log_prob",
]


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
        at, start = None, 0
        if ids is not None or task.asks("same_top"):
            start, vocab = _place(p, group)
            at = _local(ids, keep, start, vocab, p.shape[-1])
        module = choose(backend, p, q, task)
        own = slices.sums_of(p, q, at, keep, task, module, start=start)
        sums = _joined(own, task, group)
        ctx.save_for_backward(p, q, at, keep, sums)
        ctx.task, ctx.backend = task, backend
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
        return *pair, None, None, None, None, None


class ShardedPointwise(torch.autograd.Function):
    """A pointwise divergence `[n]` from a slice of both logits: one all-reduce more."""

    @staticmethod
    def forward(
        ctx: Any,
        p: Tensor,
        q: Tensor,
        keep: Tensor | None,
        what: Pointwise,
        backend: str,
        group: Any,
    ) -> Tensor:
        """Find the normalisers of the whole, then sum the slice."""
        task = Task(("kl",), what.temperature)
        own = slices.sums_of(p, q, None, keep, task, choose(backend, p, q, task))
        sums = _joined(own, task, group)
        found = pointwise.sums_of(p, q, sums, what)
        dist.all_reduce(found, group=group)
        ctx.save_for_backward(p, q, keep, sums, found)
        ctx.what = what
        return _rounded(found[0], p, q, keep)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Return the gradients of the slice; nothing is sent."""
        p, q, keep, sums, found = ctx.saved_tensors
        pair = _rooms(ctx, p, q)
        pointwise.gradient(p, q, sums, found, grad, ctx.what, pair)
        for each in pair:
            if each is not None and keep is not None:
                each.masked_fill_(~keep[:, None], 0)
        return *pair, None, None, None, None


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
    return (ids - start).where((ids >= start) & (ids < start + own), -1)


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


Group = Any  # a torch.distributed process group, None for the default one


def kl(
    p_logits: Tensor,
    q_logits: Tensor,
    *,
    group: Group = None,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    nan: str = "refuse",
    backend: str = "auto",
) -> Tensor:
    """Return KL(p‖q) `[*batch]`, in nats, ≥ 0, of logits cut over `group` (MATH 5.7).

    p_logits, q_logits: this process's slice, `[*batch, slice]`, the same tokens for both; slices
    may differ in size from process to process, the batch may not. mask: bool `[*batch]`, the same
    everywhere. Exact up to rounding; gradients of the slice to either side.
    Errors: `ValueError` without a process group, and as in `kullback.tokens.kl`.

    >>> import torch
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> kl(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log())
    tensor(0.1438)
    >>> dist.destroy_process_group()
    """
    task = Task(("kl",), temperature)
    return _measure(p_logits, q_logits, task, None, mask, nan, backend, group)[0]


def js(
    p_logits: Tensor,
    q_logits: Tensor,
    *,
    beta: float = 0.5,
    group: Group = None,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    nan: str = "refuse",
    backend: str = "auto",
) -> Tensor:
    """Return `β KL(p‖m) + (1−β) KL(q‖m)` `[*batch]`, m = β p + (1−β) q, in nats; see `kl`.

    beta: strictly between 0 and 1. A third all-reduce adds up the slices, when all know the
    normalisers; the backend finds those, the sums over the mixture are PyTorch's own operations.
    """
    task = Task(("js",), temperature, beta)
    return _measure(p_logits, q_logits, task, None, mask, nan, backend, group)[0]


def jeffreys(
    p_logits: Tensor,
    q_logits: Tensor,
    *,
    group: Group = None,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    nan: str = "refuse",
    backend: str = "auto",
) -> Tensor:
    """Return `KL(p‖q) + KL(q‖p)` `[*batch]`, in nats, of logits cut over `group`; see `kl`."""
    task = Task(("kl", "reverse_kl"), temperature)
    return _measure(p_logits, q_logits, task, None, mask, nan, backend, group).sum(0)


def cross_entropy(
    p_logits: Tensor,
    q_logits: Tensor,
    *,
    group: Group = None,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    nan: str = "refuse",
    backend: str = "auto",
) -> Tensor:
    """Return `H(p, q) = H(p) + KL(p‖q)` `[*batch]`, in nats, of logits cut over `group`; see `kl`.

    p is the truth, q the belief.
    """
    task = Task(("entropy", "kl"), temperature)
    return _measure(p_logits, q_logits, task, None, mask, nan, backend, group).sum(0)


def entropy(
    logits: Tensor,
    *,
    group: Group = None,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    nan: str = "refuse",
    backend: str = "auto",
) -> Tensor:
    """Return H(p) `[*batch]`, in nats, of logits `[*batch, slice]` cut over `group`; see `kl`."""
    task = Task(("entropy",), temperature)
    return _measure(logits, None, task, None, mask, nan, backend, group)[0]


def log_prob(
    logits: Tensor,
    ids: Tensor,
    *,
    group: Group = None,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    nan: str = "refuse",
    backend: str = "auto",
) -> Tensor:
    """Return log p(id) `[*batch]`, in nats, of logits `[*batch, slice]` cut over `group`; see `kl`.

    ids: integers `[*batch]`, counted over the whole vocabulary: slices lie in the order of ranks.
    """
    task = Task(("log_prob",), temperature)
    return _measure(logits, None, task, ids, mask, nan, backend, group)[0]


def compare(
    p_logits: Tensor,
    q_logits: Tensor,
    *,
    ids: Tensor | None = None,
    group: Group = None,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    nan: str = "refuse",
    backend: str = "auto",
) -> Comparison:
    """Return KL both ways, agreement, entropies and log-probabilities of `ids`; see `kl`.

    ids: as in `log_prob`, or None. The result is as in `kullback.tokens.compare`.
    """
    wants: tuple[Value, ...] = ("kl", "reverse_kl", "same_top", "entropy", "q_entropy")
    wants = wants if ids is None else (*wants, "log_prob", "q_log_prob")
    task = Task(wants, temperature)
    found = _measure(p_logits, q_logits, task, ids, mask, nan, backend, group)
    there, back, same, p_entropy, q_entropy, *at = found
    p_at, q_at = at if at else (None, None)
    return Comparison(there, back, same.detach() == 1, p_entropy, q_entropy, p_at, q_at)


def _measure(
    p: Tensor,
    q: Tensor | None,
    task: Task,
    ids: Tensor | None,
    mask: Tensor | None,
    nan: str,
    backend: str,
    group: Group,
) -> Tensor:
    name = "logits" if q is None else "p_logits"
    check_logits(p, name)
    check_options(task, nan, None)
    if q is not None:
        check_logits(q, "q_logits")
        p, q = common(p, q, None)
    sums = backend != "reference"
    require(sums, "backend", "one that sums rows", repr(backend), "'auto' or 'chunked'")
    hint = "torch.distributed.init_process_group(...)"
    require(dist.is_initialized(), "group", "a process group", "none", hint)
    keep = spread_mask(mask, p)
    batch, vocab = p.shape[:-1], p.shape[-1]
    flat = [x if x is None else x.reshape(-1, vocab) for x in (p, q)]
    flat = [x if x is None or x.stride(-1) == 1 else x.contiguous() for x in flat]
    rest = [x if x is None else x.reshape(-1) for x in (ids, keep)]
    found: Tensor
    if task.asks("js"):
        what = Pointwise("jsd", task.beta, task.temperature)
        found = ShardedPointwise.apply(*flat, rest[1], what, backend, group)  # type: ignore[no-untyped-call]
    else:
        found = Sharded.apply(*flat, *rest, task, backend, group)  # type: ignore[no-untyped-call]
    found = found.reshape(-1, *batch)
    if nan == "refuse":
        refuse_nan(found.detach(), name if q is None else f"{name} and q_logits")
    return found
