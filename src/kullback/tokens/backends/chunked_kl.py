"""KL(p‖q) in pure PyTorch, by few passes over blocks that stay in a cache.

Which to use: nothing here directly; `chunked` takes it where KL(p‖q) is what is asked, and its
general way for the rows that this one leaves: those where p alone has a token, and those without a
distribution.

With u and v the unnormalised masses, any c, and l = log v/u − c,

    U = Σ u,   A = Σ u (e^l − 1 − l),   B = Σ u (e^l − 1)

give KL(p‖q) = A/U + log(1 + B/U) − B/U, and the normaliser of q is e^c (U + B). They are sums, so
rows are cut along the vocabulary too, and c comes from a row's first block. There are two ways to
sum them:

- where all l of a row are small, A = Σ u (l²/2! + l³/3! + …) as far as the dtype needs it: every
  term is known to its last digits, and the exponentials of q are not needed;
- elsewhere e^l − 1 = (1 + e^l) tanh(l/2), so that u (e^l − 1) = (u + v e^−c) tanh(l/2): nothing
  overflows, and in PyTorch a tanh takes a quarter of the time of an expm1. The gradients use it too.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kullback.tokens import limits

from .interface import Rows, Slope, Sum

__all__ = ["kl_slopes", "kl_sums"]

# Sum.NOTE of rows that were summed here, and of those that may hold tokens which p or both sides
# lack: of two slices `slices.joined` keeps the larger
PLAIN, HOLES = -2.0, -1.0


def kl_sums(p: Tensor, q: Tensor, temperature: float, out: Tensor) -> None:
    """Fill the normalisers and `Sum.KL` of `out` `[len(Sum), n]`, where `Sum.NOTE` is then not 0.

    >>> out = torch.zeros(len(Sum), 2, dtype=torch.float64)
    >>> kl_sums(torch.zeros(2, 4), torch.tensor([[0.0, 0, 0, 1], [0, 0, 0, -math.inf]]), 1.0, out)
    >>> out[Sum.NOTE], round(float(out[Sum.KL, 0]), 4)
    (tensor([-2.,  0.], dtype=torch.float64), 0.1074)
    """
    near = _look_near(p, q, temperature)
    padded = bool(p[0, -1] == -math.inf)
    if bool(near.any()) and not bool(near.all()):
        for some, small in ((near, True), (~near, False)):
            part = out[:, some]
            _sum_all(p[some], q[some], _Way(temperature, near=small, holes=padded), part)
            out[:, some] = part
    else:
        _sum_all(p, q, _Way(temperature, near=bool(near.all()), holes=padded), out)


def kl_slopes(
    rows: Rows,
    temperature: float,
    sums: Tensor,
    coefficients: Tensor,
    grad_p: Tensor | None,
    grad_q: Tensor | None,
) -> None:
    """Fill the gradients of KL(p‖q) where `kl_sums` did all rows (see `Slope`)."""
    p, q = rows.p, rows.q
    assert q is not None
    blocks = _Blocks(p, q)
    way = _Way(temperature, near=False, holes=bool((sums[Sum.NOTE] != PLAIN).any()))
    for start in range(0, len(p), blocks.rows):
        some = slice(start, start + blocks.rows)
        grads = [x if x is None else x[some] for x in (grad_p, grad_q)]
        slopes = _Slopes(blocks, way, sums[:, some, None], coefficients[:, some, None])
        for at in blocks.columns:
            slopes.fill(p[some, at], q[some, at], *(x if x is None else x[:, at] for x in grads))


def _look_near(p: Tensor, q: Tensor, temperature: float) -> Tensor:
    """Say of every row whether the log-ratios of its first tokens are small."""
    few = q[:, : limits.FIRST_TOKENS].double() - p[:, : limits.FIRST_TOKENS].double()
    return few.amax(-1) - few.amin(-1) <= limits.SMALL_LOG * temperature


@dataclass(frozen=True, slots=True)
class _Way:
    """How rows are summed."""

    temperature: float
    near: bool  # by powers of l
    holes: bool  # there are tokens that p or both sides lack
    anchored: bool = False  # exponents are counted from the largest logits
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
        self.scratch = torch.empty(4, self.rows * width, dtype=self.dtype, device=p.device)

    def room(self, name: str, like: Tensor) -> Tensor:
        """Return the scratch memory of that name in the shape of `like`."""
        return self.scratch["uvxh".index(name), : like.numel()].view(like.shape)

    def wide(self, x: Tensor, room: Tensor) -> Tensor:
        """Return x in the dtype of the blocks, in `room` if that takes memory."""
        return x if x.dtype == self.dtype else room.copy_(x)

    def exp(self, name: str, logits: Tensor, top: Tensor | None, temperature: float) -> Tensor:
        """Return e^((logits − top) / temperature), in the room of that name."""
        room = self.room(name, logits)
        x = self.wide(logits, room)
        if top is not None:
            x = torch.sub(x, top, out=room)
        if temperature != 1:
            x = torch.div(x, temperature, out=room)
        return torch.exp(x, out=room)

    def difference(self, p: Tensor, q: Tensor, way: _Way) -> Tensor:
        """Return q − p in the room x; v is lost. Finite, but for tokens that q lacks, if `holes`."""
        x = self.room("x", p)
        torch.sub(self.wide(q, self.room("v", q)), self.wide(p, x), out=x)
        return x.nan_to_num_(0.0, limits.LARGEST_LOG_RATIO, -math.inf) if way.holes else x


def _sum_all(p: Tensor, q: Tensor, way: _Way, out: Tensor) -> None:
    """Sum rows, the others as the first block turned out to need."""
    blocks = _Blocks(p, q)
    way = _sum(blocks, p[: blocks.rows], q[: blocks.rows], way, out[:, : blocks.rows])
    if len(p) > blocks.rows:
        _sum(blocks, p[blocks.rows :], q[blocks.rows :], way, out[:, blocks.rows :])


def _sum(blocks: _Blocks, p: Tensor, q: Tensor, way: _Way, out: Tensor) -> _Way:
    """Sum rows, and those that need it once more in another way; return the last way."""
    total = _total(blocks, p, q, way)
    total.write(way, out)
    good = total.good()
    if bool(good.all()):
        return way
    bad = (~good).nonzero()[:, 0]
    better = total.better(bad, way)
    if better == way:  # these are left
        out[Sum.NOTE, bad] = 0.0
        return way
    part = out[:, bad]
    better = _sum(blocks, p[bad], q[bad], better, part)
    out[:, bad] = part
    return better


@dataclass(frozen=True, slots=True)
class _Total:
    """U, A, B and c of rows, and what exponents of p and q are counted from, `[n]`, float64."""

    U: Tensor
    A: Tensor
    B: Tensor
    c: Tensor
    p_from: Tensor | float
    q_from: Tensor | float
    cut: bool  # c is that of the first of several blocks

    def write(self, way: _Way, out: Tensor) -> None:
        """Fill the rows of `out`."""
        gap = self.B / self.U
        more = gap.log1p()
        out[Sum.KL] = (self.A / self.U + more - gap).clamp_(min=0)
        p_log = self.U.log() + self.p_from
        for log, top, rest in (
            (p_log, Sum.P_MAX, Sum.P_LOG),
            (p_log + self.c + more, Sum.Q_MAX, Sum.Q_LOG),
        ):  # as a logit that float32 holds, and what is left
            out[top] = (log * way.temperature).float()
            out[rest] = log - out[top] / way.temperature
        out[Sum.NOTE] = HOLES if way.holes else PLAIN

    def in_range(self) -> Tensor:
        """Say where Σ u and Σ v are so far within float32 that no mass that counts is not."""
        p_log = self.U.log()
        q_log = p_log + self.c + self.p_from - self.q_from
        return (p_log.abs() < limits.SAFE_LOG) & (q_log.abs() < limits.SAFE_LOG)

    def good(self) -> Tensor:
        """Say which rows are summed well: A is finite, and c cost it at most half of its digits."""
        good = self.in_range() & self.A.isfinite()
        return good & (self.B * self.B <= self.A * self.U) if self.cut else good

    def better(self, bad: Tensor, way: _Way) -> _Way:
        """Return a way that may do for the bad rows; the same if there is none."""
        if bool(self.B[bad].isnan().any()) and not way.holes:
            return replace(way, holes=True)
        if way.near and bool(self.A[bad].isnan().any()):
            return replace(way, near=False)
        if not bool(self.in_range()[bad].all()) and not way.anchored:
            return replace(way, anchored=True)
        if bool(self.A[bad].isnan().any()) and not way.holes:  # tokens that p alone lacks
            return replace(way, holes=True)
        return replace(way, whole=True) if self.cut else way


def _total(blocks: _Blocks, p: Tensor, q: Tensor, way: _Way) -> _Total:
    """Sum rows p, q `[n, vocab]` in that way, a block at a time."""
    tops: list[Any] = [None, None]
    if way.anchored:
        tops = [x.amax(-1, keepdim=True).to(blocks.dtype) for x in (p, q)]
    sums: list[tuple[Tensor, ...]] = []
    ratios = []
    for start in range(0, len(p), blocks.rows):
        rows = slice(start, start + blocks.rows)
        row = _Row(blocks, way, *(x if x is None else x[rows] for x in tops))
        if way.whole:
            row.c = row.whole_ratio(p[rows], q[rows])
        sums += [row.sums(p[rows, at], q[rows, at]) for at in blocks.columns]
        ratios.append(row.c)
    U, A, B = (torch.cat(x).view(len(p), -1).double().sum(-1) for x in zip(*sums, strict=True))
    c = torch.cat(ratios)[:, 0].double()
    begun = [0.0 if x is None else x[:, 0].double() / way.temperature for x in tops]
    return _Total(U, A, B, c, *begun, cut=len(blocks.columns) > 1 and not way.whole)


class _Row:
    """Some rows, block after block: what they have in common."""

    def __init__(self, blocks: _Blocks, way: _Way, p_top: Any, q_top: Any) -> None:
        self.blocks, self.way, self.p_top, self.q_top = blocks, way, p_top, q_top
        self.c: Any = None  # [rows, 1]
        # by which the log-ratio of the sums of exponentials differs from that of the normalisers
        self.apart: Any = 0.0 if p_top is None else (q_top - p_top) / way.temperature

    def whole_ratio(self, p: Tensor, q: Tensor) -> Tensor:
        """Return the log-ratio of the normalisers of whole rows."""
        sums = [
            sum(
                self.blocks.exp("u", x[:, at], top, self.way.temperature).sum(-1, keepdim=True)
                for at in self.blocks.columns
            )
            for x, top in ((p, self.p_top), (q, self.q_top))
        ]
        return torch.log(sums[1] / sums[0]) + self.apart

    def sums(self, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return U, A and B of a block, `[rows]`."""
        x = self.blocks.difference(p, q, self.way)
        u = self.blocks.exp("u", p, self.p_top, self.way.temperature)
        U = u.sum(-1)
        return U, *(self.near_sums(x, u, U) if self.way.near else self.far_sums(x, u, U, q))

    def far_sums(self, x: Tensor, u: Tensor, U: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return A and B; x: q − p, which is overwritten."""
        v = self.blocks.exp("v", q, self.q_top, self.way.temperature)
        if self.c is None:
            self.c = (v.sum(-1) / U).log_()[:, None] + self.apart
        half = torch.add(self.c * -0.5, x, alpha=0.5 / self.way.temperature, out=x)
        times = (self.apart - self.c).exp_()
        tanh = torch.tanh(half, out=self.blocks.room("h", x))
        terms = torch.addcmul(u, v, times, out=v).mul_(tanh)
        B = terms.sum(-1)
        return terms.addcmul_(u, half, value=-2).sum(-1), B

    def near_sums(self, x: Tensor, u: Tensor, U: Tensor) -> tuple[Tensor, Tensor]:
        """Return A and B by powers of l, or A = NaN where these are too large; x: as above."""
        l = x if self.way.temperature == 1 else x.div_(self.way.temperature)  # noqa: E741
        power = self.blocks.room("h", l)
        if self.c is None:
            self.c = (torch.mul(u, l, out=power).sum(-1) / U)[:, None]
        l.sub_(self.c)
        mean = torch.mul(u, l, out=power).sum(-1)
        most = max(float(l.amax()), -float(l.amin()))
        if not most <= limits.SMALL_LOG:
            return U * math.nan, mean
        A, k, least = torch.zeros_like(U), 1, torch.finfo(l.dtype).eps / 4
        while k == 1 or 2 * most ** (k - 1) / math.factorial(k + 1) > least:
            k += 1
            A.add_(power.mul_(l).sum(-1), alpha=1 / math.factorial(k))
        return A, mean + A


class _Slopes:
    """Gradients of some rows, block after block, by their sums and coefficients `[…, rows, 1]`."""

    def __init__(self, blocks: _Blocks, way: _Way, sums: Tensor, coefficients: Tensor) -> None:
        self.blocks, self.way = blocks, way
        tops, logs = sums[[Sum.P_MAX, Sum.Q_MAX]], sums[[Sum.P_LOG, Sum.Q_LOG]]
        c = (tops[1] - tops[0]) / way.temperature + logs[1] - logs[0]
        p_times, q_times = (-logs).exp()  # exponentials are counted from the tops, not the normalisers
        one, ratio, step = coefficients[[Slope.P_ONE, Slope.P_RATIO, Slope.Q_STEP]]
        self.p_top, self.q_top = tops.to(blocks.dtype)
        rows = torch.stack([c / -2, q_times / p_times, step * p_times, one * p_times, 2 * ratio * p_times])
        self.offset, self.q_times, self.step, self.one, self.ratio = rows.to(blocks.dtype)

    def fill(self, p: Tensor, q: Tensor, grad_p: Tensor | None, grad_q: Tensor | None) -> None:
        """Fill the gradients of a block, either of which may be None."""
        blocks, temperature = self.blocks, self.way.temperature
        x = blocks.difference(p, q, self.way)
        u = blocks.exp("u", p, self.p_top, temperature)
        half = torch.add(self.offset, x, alpha=0.5 / temperature, out=x)
        if grad_p is not None:  # the mass first: 0, where half may be as large as float32 has them
            slope = torch.mul(half, u, out=blocks.room("h", half)).mul_(self.ratio)
            grad_p.copy_(slope.addcmul_(u, self.one))
        if grad_q is not None:
            v = blocks.exp("v", q, self.q_top, temperature)
            both = torch.addcmul(u, v, self.q_times, out=v)  # p + q, but for factors of rows
            grad_q.copy_(both.mul_(half.tanh_()).mul_(self.step))
