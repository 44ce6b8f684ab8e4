"""KL(p‖q) in pure PyTorch, by few passes over blocks that stay in a cache.

Which to use: nothing here directly; `chunked` takes it where KL(p‖q) is what is asked, and its
general way for the rows that this one leaves: those where p alone has a token, and those without a
distribution. What is done once a row is done in NumPy, whose operations on few numbers cost a
quarter of PyTorch's.

With u and v the unnormalised masses, any c, and l = log v/u − c,

    U = Σ u,   A = Σ u (e^l − 1 − l),   B = Σ u (e^l − 1)

give KL(p‖q) = A/U + log(1 + B/U) − B/U, and the normaliser of q is e^c (U + B). They are sums, so
rows are cut along the vocabulary too, and c comes from a row's first block. There are two ways to
sum them:

- where all l of a row are small, A = Σ u (l²/2! + l³/3! + …) as far as the dtype needs it: every
  term is known to its last digits, and the exponentials of q are not needed;
- elsewhere e^l − 1 = (1 + e^l) tanh(l/2), so that u (e^l − 1) = (u + v e^−c) tanh(l/2): nothing
  overflows, and in PyTorch a tanh takes a quarter of the time of an expm1. So do the gradients.
"""

import math
import threading
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kullback.tokens import limits

from .interface import Rows, Slope, Sum

__all__ = ["kl_slopes", "kl_sums"]

# Sum.NOTE of rows that were summed here, and of those that may hold tokens which p or both sides
# lack: of two slices `slices.joined` keeps the larger
PLAIN, HOLES = -2.0, -1.0


def kl_sums(p: Tensor, q: Tensor, temperature: float) -> tuple[Any, Any]:
    """Return normalisers and `Sum.KL`, float64 `[len(Sum), n]`, and the rows that were done, `[n]`.

    >>> p, q = torch.zeros(2, 3), torch.tensor([[0, 0, 1.0], [0, 0, -math.inf]])
    >>> found, done = kl_sums(p, q, 1.0)
    >>> done.tolist(), round(float(found[Sum.KL, 0]), 4)
    ([True, False], 0.1206)
    """
    out = np.zeros((len(Sum), len(p)))
    # hints, from the first row: its log-ratios, and its end, where tokens that no side has stand
    first, other = (x[0, : limits.FIRST_TOKENS].tolist() for x in (p, q))
    gaps = [b - a for a, b in zip(first, other, strict=True)]
    near = max(gaps) - min(gaps) <= limits.SMALL_LOG * temperature
    way = _Way(temperature, near=near, holes=p[0, -1].item() == -math.inf)
    with np.errstate(all="ignore"):
        _sum_all(p, q, way, out)
    return out, out[Sum.NOTE] < 0


def kl_slopes(
    rows: Rows,
    temperature: float,
    sums: Tensor,
    coefficients: Tensor,
    grad_p: Tensor | None,
    grad_q: Tensor | None,
) -> None:
    """Fill the gradients of KL(p‖q) where `kl_sums` did all rows (see `Slope`)."""
    p, q = rows.p, rows.p if rows.q is None else rows.q
    blocks = _Blocks(p, q)
    found = sums.cpu().numpy()
    way = _Way(temperature, near=False, holes=bool((found[Sum.NOTE] != PLAIN).any()))
    known = _Slopes.known(found, coefficients.cpu().numpy(), temperature)
    known = torch.from_numpy(known).to(p.device, blocks.dtype)
    for start in range(0, len(p), blocks.rows):
        some = slice(start, start + blocks.rows)
        slopes = _Slopes(blocks, way, *known[:, some, None])
        for at in blocks.columns:
            grads = (x if x is None else x[some, at] for x in (grad_p, grad_q))
            slopes.fill(p[some, at], q[some, at], *grads)


@dataclass(frozen=True, slots=True)
class _Way:
    """How rows are summed."""

    temperature: float
    near: bool  # by powers of l
    holes: bool  # there are tokens that p or both sides lack
    anchored: bool = False  # exponents are counted from the largest logits
    far: bool = False  # some l is too large for these
    whole: bool = False  # c comes from the normalisers of whole rows


class _Blocks:
    """The size of a block, and scratch memory of that size."""

    def __init__(self, p: Tensor, q: Tensor) -> None:
        n, vocab = p.shape
        most = limits.CACHED_BLOCK if p.device.type == "cpu" else limits.ACCELERATOR_BLOCK
        width = -(-vocab // -(-vocab // most))  # as few blocks to a row as can be, of one size
        self.rows = max(1, min(n, most // vocab))
        self.columns = [slice(start, start + width) for start in range(0, vocab, width)]
        self.dtype = torch.float64 if torch.float64 in (p.dtype, q.dtype) else torch.float32
        self.scratch = _scratch(self.rows * width, self.dtype, p.device)
        self.u = self.v = self.x = self.h = self.scratch  # its parts in the shape of a block

    def take(self, block: Tensor) -> None:
        """Give the scratch memory the shape of a block."""
        if self.u.shape != block.shape:
            parts = self.scratch[:, : block.numel()].view(4, *block.shape)
            self.u, self.v, self.x, self.h = parts.unbind()

    def wide(self, x: Tensor, room: Tensor) -> Tensor:
        """Return x in the dtype of the blocks, in `room` if that takes memory."""
        return x if x.dtype == self.dtype else room.copy_(x)

    def exp(self, room: Tensor, logits: Tensor, top: Tensor | None, temperature: float) -> Tensor:
        """Return e^((logits − top) / temperature), in `room`."""
        x = self.wide(logits, room)
        if top is not None:
            x = torch.sub(x, top, out=room)
        if temperature != 1:
            x = torch.div(x, temperature, out=room)
        return torch.exp(x, out=room)

    def difference(self, p: Tensor, q: Tensor, way: _Way) -> Tensor:
        """Return q − p in `x`; `v` is lost. Finite, but for tokens that q lacks, if `holes`."""
        self.take(p)
        x = torch.sub(self.wide(q, self.v), self.wide(p, self.x), out=self.x)
        return x.nan_to_num_(0.0, limits.LARGEST_LOG_RATIO, -math.inf) if way.holes else x


_kept = threading.local()


def _scratch(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return scratch memory for four blocks; on a CPU, where pages are what costs, it is kept."""
    if device.type != "cpu":
        return torch.empty(4, size, dtype=dtype, device=device)
    kept = getattr(_kept, "memory", None)
    size_of_all = 4 * size * dtype.itemsize
    if kept is None or kept.numel() < size_of_all:
        _kept.memory = kept = torch.empty(size_of_all, dtype=torch.uint8)
    return kept[:size_of_all].view(dtype).view(4, size)


def _sum_all(p: Tensor, q: Tensor, way: _Way, out: Any) -> None:
    """Sum rows, the others as the first block turned out to need."""
    blocks = _Blocks(p, q)
    way = _sum(blocks, p[: blocks.rows], q[: blocks.rows], way, out[:, : blocks.rows])
    if len(p) > blocks.rows:
        _sum(blocks, p[blocks.rows :], q[blocks.rows :], way, out[:, blocks.rows :])


def _sum(blocks: _Blocks, p: Tensor, q: Tensor, way: _Way, out: Any) -> _Way:
    """Sum rows, and those that need it once more in another way; return the last way."""
    total = _total(blocks, p, q, way)
    total.write(way, out)
    good = total.good()
    bad = np.flatnonzero(~good)
    better = total.better(bad, way) if len(bad) else way
    if better != way:
        part = out[:, bad]
        better = _sum(blocks, p[bad], q[bad], better, part)
        out[:, bad] = part
        return better
    out[Sum.NOTE, bad] = 0.0  # these are left to others
    small = np.flatnonzero(good & (out[Sum.KL] <= limits.SMALL_LOG**2 / 32))
    if way.near or way.far or not len(small):
        return way
    nearer, part = replace(way, near=True), out[:, small]
    total = _total(blocks, p[small], q[small], nearer)
    total.write(nearer, part)
    good = total.good()
    out[:, small[good]] = part[:, good]
    return nearer if good.all() and len(good) == len(p) else way


@dataclass(frozen=True, slots=True)
class _Total:
    """U, A, B and c of rows, and what exponents of p and q are counted from: `[n]`, float64."""

    U: Any
    A: Any
    B: Any
    c: Any
    tops: Any  # [2, n], over the temperature
    cut: bool  # c is that of the first of several blocks

    def write(self, way: _Way, out: Any) -> None:
        """Fill the rows of `out`."""
        gap = self.B / self.U
        more = np.log1p(gap)
        out[Sum.KL] = np.maximum(self.A / self.U + more - gap, 0.0)
        out[Sum.NOTE] = HOLES if way.holes else PLAIN
        p_log = np.log(self.U) + self.tops[0]
        for log, top, rest in (
            (p_log, Sum.P_MAX, Sum.P_LOG),
            (p_log + self.c + more, Sum.Q_MAX, Sum.Q_LOG),
        ):  # as a logit that float32 holds, and what is left
            out[top] = (log * way.temperature).astype(np.float32)
            out[rest] = log - out[top] / way.temperature

    def good(self) -> Any:
        """Say which rows are summed well: A is finite, and c cost it at most half of its digits."""
        good = self.in_range() & np.isfinite(self.A)
        return good & (self.B * self.B <= self.A * self.U) if self.cut else good

    def in_range(self) -> Any:
        """Say where Σ u and Σ v are so far within float32 that no mass that counts is not."""
        p_log = np.log(self.U)
        q_log = p_log + self.c + self.tops[0] - self.tops[1]
        return (abs(p_log) < limits.SAFE_LOG) & (abs(q_log) < limits.SAFE_LOG)

    def better(self, bad: Any, way: _Way) -> _Way:
        """Return a way that may do for the bad rows; the same if there is none."""
        lost = bool(np.isnan(self.A[bad]).any())
        if np.isnan(self.B[bad]).any() and not way.holes:
            return replace(way, holes=True)
        if way.near and lost:
            return replace(way, near=False, far=True)
        if not self.in_range()[bad].all() and not way.anchored:
            return replace(way, anchored=True)
        if lost and not way.holes:  # tokens that p alone lacks
            return replace(way, holes=True)
        return replace(way, whole=True) if self.cut else way


def _total(blocks: _Blocks, p: Tensor, q: Tensor, way: _Way) -> _Total:
    """Sum rows p, q `[n, vocab]` in that way, a block at a time."""
    tops = [x.amax(-1, keepdim=True).to(blocks.dtype) for x in (p, q)] if way.anchored else []
    found = []
    for start in range(0, len(p), blocks.rows):
        some = slice(start, start + blocks.rows)
        row = _Row(blocks, way, *(x[some] for x in tops))
        if way.whole:
            row.c = row.whole_ratio(p[some], q[some])
        found += [row.sums(p[some, at], q[some, at]) for at in blocks.columns]
    sums = torch.cat(found).double().cpu().numpy().reshape(len(p), -1, 4)
    begun = torch.cat(tops, -1).T.double().cpu().numpy() / way.temperature if tops else (0.0, 0.0)
    U, A, B, c = *sums[..., :3].sum(1).T, sums[:, 0, 3]
    return _Total(U, A, B, c, begun, cut=len(blocks.columns) > 1 and not way.whole)


class _Row:
    """Some rows, block after block: what they have in common."""

    def __init__(
        self, blocks: _Blocks, way: _Way, p_top: Tensor | None = None, q_top: Tensor | None = None
    ) -> None:
        self.blocks, self.way, self.p_top, self.q_top = blocks, way, p_top, q_top
        self.c: Tensor | None = None  # [rows, 1]

    def plus_tops(self, x: Tensor) -> Tensor:
        """Return x and what the log-ratio of the tops adds to one of sums of exponentials."""
        if self.p_top is None or self.q_top is None:
            return x
        return torch.add(x, self.q_top - self.p_top, alpha=1 / self.way.temperature)

    def whole_ratio(self, p: Tensor, q: Tensor) -> Tensor:
        """Return the log-ratio of the normalisers of whole rows."""
        blocks, logs = self.blocks, []
        for x, top in ((p, self.p_top), (q, self.q_top)):
            total = torch.zeros(len(p), 1, dtype=blocks.dtype, device=p.device)
            for at in blocks.columns:
                blocks.take(x[:, at])
                exp = blocks.exp(blocks.u, x[:, at], top, self.way.temperature)
                total += exp.sum(-1, keepdim=True)
            logs.append(total.log())
        return self.plus_tops(logs[1] - logs[0])

    def sums(self, p: Tensor, q: Tensor) -> Tensor:
        """Return U, A, B and c of a block, `[rows, 4]`."""
        blocks = self.blocks
        x = blocks.difference(p, q, self.way)
        u = blocks.exp(blocks.u, p, self.p_top, self.way.temperature)
        U = u.sum(-1, keepdim=True)
        return self.near_sums(x, u, U) if self.way.near else self.far_sums(x, u, U, q)

    def far_sums(self, x: Tensor, u: Tensor, U: Tensor, q: Tensor) -> Tensor:
        """Return the same; x: q − p, which is overwritten."""
        blocks = self.blocks
        v = blocks.exp(blocks.v, q, self.q_top, self.way.temperature)
        if self.c is None:
            self.c = self.plus_tops(v.sum(-1, keepdim=True).div_(U).log_())
        half = torch.add(self.c * -0.5, x, alpha=0.5 / self.way.temperature, out=x)
        times = self.plus_tops(-self.c).exp_()
        tanh = torch.tanh(half, out=blocks.h)
        terms = torch.addcmul(u, v, times, out=v).mul_(tanh)
        B = terms.sum(-1, keepdim=True)
        A = terms.addcmul_(u, half, value=-2).sum(-1, keepdim=True)
        return torch.cat((U, A, B, self.c), -1)

    def near_sums(self, x: Tensor, u: Tensor, U: Tensor) -> Tensor:
        """Return the same by powers of l, A as NaN where these are too large; x: as above."""
        l = x if self.way.temperature == 1 else x.div_(self.way.temperature)  # noqa: E741
        power = self.blocks.h
        if self.c is None:
            self.c = torch.mul(u, l, out=power).sum(-1, keepdim=True).div_(U)
        l.sub_(self.c)
        B = torch.mul(u, l, out=power).sum(-1, keepdim=True)
        most = max(float(l.amax()), -float(l.amin()))
        if not most <= limits.SMALL_LOG:
            return torch.cat((U, U * math.nan, B, self.c), -1)
        A, k, least = torch.zeros_like(U), 1, torch.finfo(l.dtype).eps / 4
        while k == 1 or 2 * most ** (k - 1) / math.factorial(k + 1) > least:
            k += 1
            A.add_(power.mul_(l).sum(-1, keepdim=True), alpha=1 / math.factorial(k))
        return torch.cat((U, A, B + A, self.c), -1)


@dataclass(frozen=True, slots=True)
class _Slopes:
    """Of some rows what their gradients need block after block, `[rows, 1]`."""

    blocks: _Blocks
    way: _Way
    p_top: Tensor  # what exponents are counted from
    q_top: Tensor
    offset: Tensor  # −c/2
    q_times: Tensor  # q over v, as a multiple of p over u
    step: Tensor  # coefficients, times p over u
    one: Tensor
    ratio: Tensor  # twice, as what it is multiplied by is l/2

    @staticmethod
    def known(sums: Any, coefficients: Any, temperature: float) -> Any:
        """Return the fields from `p_top` on, `[7, n]`, of the sums and coefficients of rows."""
        p_top, p_log, q_top, q_log = sums[Sum.P_MAX : Sum.Q_LOG + 1]
        c = (q_top - p_top) / temperature + q_log - p_log
        p_times = np.exp(-p_log)
        step, one, ratio = (coefficients[x] for x in (Slope.Q_STEP, Slope.P_ONE, Slope.P_RATIO))
        of_p = p_times * np.stack([step, one, 2 * ratio])
        return np.stack([p_top, q_top, c / -2, np.exp(p_log - q_log), *of_p])

    def fill(self, p: Tensor, q: Tensor, grad_p: Tensor | None, grad_q: Tensor | None) -> None:
        """Fill the gradients of a block, either of which may be None."""
        blocks, temperature = self.blocks, self.way.temperature
        x = blocks.difference(p, q, self.way)
        u = blocks.exp(blocks.u, p, self.p_top, temperature)
        half = torch.add(self.offset, x, alpha=0.5 / temperature, out=x)
        if grad_p is not None:  # the mass first: 0, where half may be as large as float32 has them
            slope = torch.mul(half, u, out=blocks.h).mul_(self.ratio)
            grad_p.copy_(slope.addcmul_(u, self.one))
        if grad_q is not None:
            v = blocks.exp(blocks.v, q, self.q_top, temperature)
            both = torch.addcmul(u, v, self.q_times, out=v)  # p + q, but for factors of rows
            grad_q.copy_(both.mul_(half.tanh_()).mul_(self.step))
