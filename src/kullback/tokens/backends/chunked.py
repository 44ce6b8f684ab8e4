"""Pure PyTorch, a few rows at a time: any device, any dtype, gradients written by hand.

Which to use: what `backend="auto"` falls back to where nothing faster can run. A block of rows (at
least one) is worked off in scratch memory that is allocated once and reused, in float32, or in
float64 if a side is float64. Above the inputs it needs at most ten blocks, and the gradients. KL
alone is summed in fewer passes by `chunked_kl`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from kullback.tokens import limits

from . import chunked_kl, interface
from .interface import Rows, Slope, Sum, Task

__all__ = ["kl", "kl_slopes", "refusal", "slopes", "sums"]


def refusal(p: Tensor, q: Tensor | None, task: Task) -> str:
    """Say "": it does everything.

    >>> refusal(torch.zeros(1, 2), None, Task(("entropy",)))
    ''
    """
    return ""


def sums(p: Tensor, q: Tensor | None, keep: Tensor | None, task: Task) -> Tensor:
    """Return the sums `[len(Sum), n]` of rows p, q `[n, vocab]` (see `task`).

    >>> sums(torch.zeros(1, 4), None, None, Task(("entropy",)))[Sum.P_ENTROPY].exp()
    tensor([4.0000], dtype=torch.float64)
    """
    return _sums(p, q, task)[0]


def _sums(p: Tensor, q: Tensor | None, task: Task) -> tuple[Tensor, bool]:
    """Return the sums, and whether all rows are known to have a distribution and finite values."""
    if q is None or task.wants != ("kl",) or not chunked_kl.takes(p, q):
        return _general_sums(p, q, task), False
    sums, done = chunked_kl.kl_sums(p, q, task.temperature)
    out = torch.from_numpy(sums)
    if done.all():
        return out, True
    left = torch.from_numpy(~done).nonzero()[:, 0]
    out[:, left] = _general_sums(p[left], q[left], task)
    return out, False


def kl(p: Tensor, q: Tensor, temperature: float) -> tuple[Tensor, Tensor, bool] | None:
    """Return KL(p‖q) `[*batch]` of contiguous logits, the sums, and whether rounding may matter.

    None where a row has no distribution, or the logits may be probabilities: then the general way
    has something to say.

    >>> kl(torch.ones(4), torch.ones(4), 1.0) is None
    True
    """
    batch, p, q = p.shape[:-1], _matrix(p), _matrix(q)
    if any(min(x) >= 0 and max(x) <= 2 for x in (_first(p), _first(q))):
        return None
    task, sizes = Task(("kl",), temperature), (p.dtype.itemsize, q.dtype.itemsize)
    sums, plain = _sums(p, q, task)
    values = sums.numpy()[Sum.KL] if plain else interface.values(sums, task)[0].numpy()
    if not plain and np.isnan(values).any():
        return None
    values = values.reshape(batch).astype(np.float64 if max(sizes) > 4 else np.float32)
    return torch.from_numpy(values), sums, min(sizes) < 4


def _first(x: Tensor) -> list[float]:
    """Return the first numbers of the first row."""
    found: list[float] = (x.numpy() if x.dtype == torch.float32 else x)[0, :8].tolist()
    return found


def _matrix(x: Tensor) -> Tensor:
    """Return contiguous logits as `[n, vocab]`, without gradient."""
    x = x.detach()
    return x if x.ndim == 2 else x.view(-1, x.shape[-1])


def kl_slopes(
    p: Tensor, q: Tensor, temperature: float, sums: Tensor, grads: Tensor, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Return the gradients by p and by q of what `kl` returned, None for a side not wanted.

    grads: those of the values.
    """
    rows = (-1, p.shape[-1])
    both = [torch.empty_like(x) if want else None for x, want in zip((p, q), wanted, strict=True)]
    to_p, to_q = (x if x is None else x.view(rows) for x in both)
    p, q, of = _matrix(p), _matrix(q), sums.numpy()
    if (of[Sum.NOTE] < 0).all():
        g = grads.detach().reshape(-1).double().numpy() / temperature
        c = np.stack((-g * of[Sum.KL], -g, g))
        chunked_kl.kl_slopes(Rows(p, q), temperature, of, c, to_p, to_q)
    else:
        task = Task(("kl",), temperature)
        coefficients = interface.coefficients(sums, grads.reshape(1, -1), task)
        slopes(Rows(p, q), task, sums, coefficients, to_p, to_q)
    return both


def _general_sums(p: Tensor, q: Tensor | None, task: Task) -> Tensor:
    out = torch.zeros(len(Sum), len(p), dtype=torch.float64, device=p.device)
    for rows, block in _blocks(p, q, task):
        part = out[:, rows]
        _side_sums(block.p, part, Sum.P_MAX, Sum.P_LOG, Sum.P_TOP, task)
        if task.asks("entropy"):
            part[Sum.P_ENTROPY] = -torch.linalg.vecdot(block.p.prob, block.p.log(block.room("a")))
        if q is None:
            continue
        _side_sums(block.q, part, Sum.Q_MAX, Sum.Q_LOG, Sum.Q_TOP, task)
        if task.asks("q_entropy"):
            part[Sum.Q_ENTROPY] = -torch.linalg.vecdot(block.q.prob, block.q.log(block.room("a")))
        _pair_sums(block, part, task)
    if len(large := _large(p, q, out, task)):
        out[:, large] = _general_sums(p[large].double(), q if q is None else q[large], task)
    return _told(out, task)


def _large(p: Tensor, q: Tensor | None, sums: Tensor, task: Task) -> Tensor:
    """Return the rows whose logits float32 rounds too much; on a CPU only, as it waits for them."""
    if p.device.type != "cpu" or torch.float64 in (p.dtype, p.dtype if q is None else q.dtype):
        return torch.empty(0, dtype=torch.int64, device="cpu")
    most = sums[[Sum.P_MAX, Sum.Q_MAX]].abs().amax(0) / task.temperature
    return ((most > limits.LARGE_LOGIT) & most.isfinite()).nonzero()[:, 0]


def _told(sums: Tensor, task: Task) -> Tensor:
    """Return sums, NaN where logits are so large that no distribution can be told."""
    most = sums[[Sum.P_MAX, Sum.Q_MAX]].abs().amax(0) / task.temperature
    beyond = (most > limits.LARGEST_LOGIT) & most.isfinite()
    tops = sums[[Sum.P_MAX, Sum.Q_MAX]]
    sums = sums.masked_fill(beyond, math.nan)
    sums[[Sum.P_MAX, Sum.Q_MAX]] = tops
    return sums


def slopes(
    rows: Rows,
    task: Task,
    sums: Tensor,
    coefficients: Tensor,
    grad_p: Tensor | None,
    grad_q: Tensor | None,
) -> None:
    """Fill `grad_p` and `grad_q`, `[n, vocab]` or None, with the gradients (see `task`).

    >>> p, grad, task = torch.zeros(1, 2), torch.empty(1, 2), Task(("log_prob",))
    >>> c = torch.zeros(len(Slope), 1, dtype=torch.float64)
    >>> c[Slope.P_ONE] = 1.0
    >>> slopes(Rows(p), task, sums(p, None, None, task), c, grad, None)
    >>> grad
    tensor([[0.5000, 0.5000]])
    """
    done = sums[Sum.NOTE] < 0 if rows.keep is None else (sums[Sum.NOTE] < 0) | ~rows.keep
    if task.wants != ("kl",) or not bool(done.any()):
        _general_slopes(rows, task, sums, coefficients, grad_p, grad_q)
    elif bool(done.all()):
        c = coefficients[[Slope.P_ONE, Slope.P_RATIO, Slope.Q_STEP]].numpy()
        chunked_kl.kl_slopes(rows, task.temperature, sums.numpy(), c, grad_p, grad_q)
        for grad in (grad_p, grad_q):
            if grad is not None and rows.keep is not None:
                grad[~rows.keep] = 0
    else:  # some rows by one way, some by the other
        for some in (done.nonzero()[:, 0], (~done).nonzero()[:, 0]):
            q, ids, keep, to_p, to_q = (
                x if x is None else x[some] for x in (rows.q, rows.ids, rows.keep, grad_p, grad_q)
            )
            part = Rows(rows.p[some], q, ids, keep)
            slopes(part, task, sums[:, some], coefficients[:, some], to_p, to_q)
            for grad, found in ((grad_p, to_p), (grad_q, to_q)):
                if grad is not None and found is not None:
                    grad[some] = found


def _general_slopes(
    rows: Rows,
    task: Task,
    sums: Tensor,
    coefficients: Tensor,
    grad_p: Tensor | None,
    grad_q: Tensor | None,
) -> None:
    ids, keep = rows.ids, rows.keep
    if len(large := _large(rows.p, rows.q, sums, task)):
        _in_float64(large, rows, task, sums, coefficients, (grad_p, grad_q))
        return
    for some, block in _blocks(rows.p, rows.q, task, sums):
        c = coefficients[:, some, None].to(block.dtype)
        at = None if ids is None else ids[some, None]
        for side, grad, first in ((block.p, grad_p, Slope.P_ONE), (block.q, grad_q, Slope.Q_ONE)):
            if grad is None:
                continue
            room = grad[some] if grad.dtype == block.dtype else block.room("c")
            found = _slope(block, side, c[first : first + 6], task, room)
            if at is not None:
                found.scatter_add_(-1, at, c[first + Slope.P_AT])
            if side.has is not None:
                found.masked_fill_(~side.has, 0)
            if keep is not None:
                found.masked_fill_(~keep[some, None], 0)
            if room.dtype != grad.dtype:
                grad[some] = found


def _in_float64(
    large: Tensor,
    rows: Rows,
    task: Task,
    sums: Tensor,
    coefficients: Tensor,
    grads: tuple[Tensor | None, Tensor | None],
) -> None:
    """Fill the gradients of large rows in float64, and those of the others."""
    others = torch.ones(len(rows.p), dtype=torch.bool, device="cpu").index_fill(0, large, False)
    for some in (large, others.nonzero()[:, 0]):
        if not len(some):
            continue
        q, ids, keep, to_p, to_q = (
            x if x is None else x[some] for x in (rows.q, rows.ids, rows.keep, *grads)
        )
        p = rows.p[some].double() if some is large else rows.p[some]
        of, c = sums[:, some], coefficients[:, some]
        _general_slopes(Rows(p, q, ids, keep), task, of, c, to_p, to_q)
        for grad, found in zip(grads, (to_p, to_q), strict=True):
            if grad is not None and found is not None:
                grad[some] = found


class _Side:
    """One side of a block: its probabilities, in scratch memory, and what they were made from.

    `has` says which tokens have mass, None for all. known: the side's maxima and log-normalisers,
    the first two of its `Sum`s, where they have been computed before.
    """

    def __init__(self, logits: Tensor, room: Tensor, task: Task, known: Tensor | None) -> None:
        self.logits, self.temperature = logits, task.temperature
        self.top = logits.amax(-1, keepdim=True).double() if known is None else known[0, :, None]
        self.exp, self.normal = _exp_(self.centred(room)), False
        if known is None:
            self.norm = self.exp.sum(-1, keepdim=True).double().log()
        else:
            self.norm = known[1, :, None]

    @cached_property
    def has(self) -> Tensor | None:
        """Which tokens have mass; a row without a distribution stays NaN throughout."""
        holes = self.logits.amin(-1) == -math.inf
        return (self.logits > -math.inf) | self.norm.isnan() if bool(holes.any()) else None

    @property
    def prob(self) -> Tensor:
        """The probabilities, in the same memory as `exp`, which they replace at first use."""
        if not self.normal:
            self.exp.div_(self.norm.exp().to(self.exp.dtype))
            self.normal = True
        return self.exp

    def centred(self, room: Tensor) -> Tensor:
        """Return (logits − max) / temperature, in `room`."""
        centred = torch.sub(self.logits, self.top.to(room.dtype), out=room)
        return centred if self.temperature == 1 else centred.div_(self.temperature)

    def log(self, room: Tensor) -> Tensor:
        """Return the log-probabilities in `room`; 0 where there is no mass."""
        log = (
            self.centred(room).clamp_(min=-limits.LARGEST_LOG_RATIO).sub_(self.norm.to(room.dtype))
        )
        return log if self.has is None else log.masked_fill_(~self.has, 0)


class _Block:
    """A block of rows, both sides, and l = log q/p, 0 where a side lacks the token."""

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.size, self.dtype, self.device = size, dtype, device
        self.scratch: dict[str, Tensor] = {}

    def room(self, name: str) -> Tensor:
        """Return the scratch memory of that name in the block's shape, whatever it holds."""
        if name not in self.scratch:
            self.scratch[name] = torch.empty(self.size, dtype=self.dtype, device=self.device)
        return self.scratch[name][: self.shape.numel()].view(self.shape)

    def load(self, p: Tensor, q: Tensor | None, task: Task, known: Tensor | None) -> None:
        """Read rows p, q `[rows, vocab]`, whose sums may be known already."""
        self.shape, self.both = p.shape, None
        self.p = self.q = _Side(p, self.room("p"), task, known)
        if q is None:
            return
        q_known = None if known is None else known[Sum.Q_MAX :]
        self.q = _Side(q, self.room("q"), task, q_known)
        self.ratio = torch.sub(q.to(self.dtype), p, out=self.room("ratio"))
        shift = (self.q.top - self.p.top) / task.temperature + (self.q.norm - self.p.norm)
        if task.temperature != 1:
            self.ratio.div_(task.temperature)
        self.ratio.sub_(shift.to(self.dtype))
        most = self.most()
        if not math.isfinite(most):
            has = [side.has for side in (self.p, self.q) if side.has is not None]
            if has:
                self.both = has[0] & has[-1]
                self.ratio.masked_fill_(~self.both, 0)
                most = self.most()
        else:  # no logit is −inf
            self.p.has = self.q.has = None
        self.far = most > limits.FAR_LOG
        if self.far:
            self.ratio.clamp_(-limits.LARGEST_LOG_RATIO, limits.LARGEST_LOG_RATIO)

    def most(self) -> float:
        """Return the largest |l|, NaN where one is NaN."""
        return max(float(self.ratio.amax()), -float(self.ratio.amin()))

    def step(self) -> Tensor:
        """Return q − p, as p (e^l − 1) where that cancels less."""
        step = (
            torch.clamp(self.ratio, max=limits.FAR_LOG, out=self.room("a"))
            .expm1_()
            .mul_(self.p.prob)
        )
        if not self.far and self.both is None:
            return step
        coarse = self.ratio.abs() > limits.FAR_LOG
        coarse = coarse if self.both is None else coarse | ~self.both
        return torch.where(coarse, self.q.prob - self.p.prob, step, out=step)

    def mix(self, beta: float) -> tuple[Tensor, Tensor]:
        """Return log m/p and log m/q, m = β p + (1−β) q, for the tokens that the side has."""
        down = torch.clamp(self.ratio, max=0, out=self.room("x")).expm1_().mul_(1 - beta).log1p_()
        up = torch.clamp(self.ratio, min=0, out=self.room("y")).neg_().expm1_().mul_(beta).log1p_()
        # one of them is 0: where l ≤ 0 their sum is x, and y = x − l; elsewhere y, and x = y + l
        x = down.add_(up)
        y = torch.sub(x, torch.clamp(self.ratio, max=0, out=self.room("a")), out=up)
        x.add_(torch.clamp(self.ratio, min=0, out=self.room("a")))
        if self.both is not None:
            x.masked_fill_(~self.both, math.log(beta))
            y.masked_fill_(~self.both, math.log1p(-beta))
        return x, y


def _blocks(
    p: Tensor, q: Tensor | None, task: Task, known: Tensor | None = None
) -> Iterator[tuple[slice, _Block]]:
    dtypes = {p.dtype} if q is None else {p.dtype, q.dtype}
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    vocab = p.shape[-1]
    step = max(
        1, (limits.CACHED_BLOCK if p.device.type == "cpu" else limits.ACCELERATOR_BLOCK) // vocab
    )
    block = _Block(min(step, len(p)) * vocab, dtype, p.device)
    for start in range(0, len(p), step):
        rows = slice(start, start + step)
        of_rows = None if known is None else known[:, rows]
        block.load(p[rows], None if q is None else q[rows], task, of_rows)
        yield rows, block


def _side_sums(side: _Side, out: Tensor, top: Sum, log: Sum, where: Sum, task: Task) -> None:
    out[top], out[log] = side.top[:, 0], side.norm[:, 0]
    if task.asks("same_top"):
        out[where] = side.logits.argmax(-1)


def _pair_sums(block: _Block, out: Tensor, task: Task) -> None:
    p, q, ratio = block.p, block.q, block.ratio
    if block.both is not None:
        for side, alone, lost in ((p, Sum.P_ALONE, Sum.P_LOST), (q, Sum.Q_ALONE, Sum.Q_LOST)):
            only = ~block.both if side.has is None else side.has & ~block.both
            out[alone], out[lost] = only.sum(-1), (side.prob * only).sum(-1)
    if task.asks("kl"):
        out[Sum.KL], off = _excess(block, p.prob, ratio, lambda: q.prob)
        out[Sum.KL] += out[Sum.Q_LOST]
        _correct(out, off + out[Sum.Q_LOST] - out[Sum.P_LOST])
    if task.asks("reverse_kl"):
        back = torch.neg(ratio, out=block.room("x"))
        out[Sum.REVERSE_KL] = _excess(block, q.prob, back, lambda: p.prob)[0] + out[Sum.P_LOST]
    if task.asks("js"):
        x, y = block.mix(task.beta)
        m = torch.lerp(q.prob, p.prob, task.beta, out=block.room("m"))
        out[Sum.JS_P] = _excess(block, p.prob, x, lambda: m)[0] + (1 - task.beta) * out[Sum.Q_LOST]
        out[Sum.JS_Q] = _excess(block, q.prob, y, lambda: m)[0] + task.beta * out[Sum.P_LOST]


def _correct(out: Tensor, off: Tensor) -> None:
    """Correct the normalisers, sums of rounded exponentials, by `off` = Σ q − p, which should be 0.

    It is a part in 10⁷, but so is the whole log-ratio of two sides that are nearly the same.
    """
    out[Sum.Q_LOG] += off.log1p()
    out[Sum.KL] = (out[Sum.KL] + off.log1p() - off).clamp_(min=0)


def _excess(
    block: _Block, prob: Tensor, ratio: Tensor, other: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return Σ prob (e^r − 1 − r), ≥ 0, and Σ prob (e^r − 1), over tokens that both sides have.

    other: gives prob e^r, which is used where e^r might overflow.
    """
    if block.far:
        return _far_excess(block, prob, ratio, other())
    terms = torch.expm1(ratio, out=block.room("b"))
    total = terms.sub_(ratio).mul_(prob).sum(-1)
    off = total + torch.mul(ratio, prob, out=terms).sum(-1)
    return total.clamp_(min=0).double(), off.double()


def _far_excess(block: _Block, prob: Tensor, ratio: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same where some e^r would overflow; other: prob e^r."""
    near = torch.clamp(ratio, max=limits.FAR_LOG, out=block.room("a"))
    terms = torch.expm1(near, out=block.room("b"))
    far = ratio > limits.FAR_LOG
    total = (terms - near).mul_(prob).where(~far, other - prob - prob * ratio).sum(-1)
    off = terms.mul_(prob).where(~far, other - prob).sum(-1)
    return total.clamp_(min=0).double(), off.double()


def _exp_(x: Tensor) -> Tensor:
    """Return e^x in place; in float32 as 2^(x/log 2), which torch computes three times as fast.

    That is within |x| roundings of e^x, of which the sums over e^x · x see less than one.
    """
    return x.exp_() if x.dtype == torch.float64 else x.mul_(1 / math.log(2)).exp2_()


def _slope(block: _Block, side: _Side, c: Tensor, task: Task, room: Tensor) -> Tensor:
    """Return one side's gradient, in `room`; c: its six coefficients, in p's order."""
    first = side is block.p
    inner = room.copy_(c[Slope.P_ONE].expand(block.shape))
    if task.asks("entropy" if first else "q_entropy"):
        inner.addcmul_(side.log(block.room("a")), c[Slope.P_LOG])
    if task.asks("kl" if first else "reverse_kl"):
        inner.addcmul_(block.ratio, c[Slope.P_RATIO])
    if task.asks("js"):
        x, y = block.mix(task.beta)
        inner.addcmul_(x if first else y, c[Slope.P_MIX])
    inner.mul_(side.prob)
    if task.asks("reverse_kl" if first else "kl"):
        inner.addcmul_(block.step(), c[Slope.P_STEP])
    return inner
