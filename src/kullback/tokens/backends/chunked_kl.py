"""KL(p‖q) in pure PyTorch on a CPU, of logits up to 32 bits wide: in float64, by few passes.

Which to use: nothing here directly; `chunked` takes it where KL(p‖q) is what is asked, and its
general way for the rows that this one leaves: those where p alone has a token, and those without a
distribution.

With u and v the unnormalised masses, and d the differences of the logits, q's less p's,

    KL(p‖q) = log(Σ v / Σ u) − Σ u d / Σ u.

In float32 that would cost most digits of a small KL. In float64 it is known to 1e-15, and no logit
up to ±600 is too large: seven passes over a block that stays in a cache. They are sums, so rows are
cut along the vocabulary too. Where KL is so small that 1e-15 is a part in 10⁷ of it, the terms
`p (e^l − 1 − l)` of the normalised sides are summed instead, l = log q/p, and q where p has none.

Of few logits the calls cost more than the arithmetic. So both sides lie in one tensor, which one
call works on, and NumPy, whose calls are shorter, has slices and what is known of whole rows.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kullback.tokens import limits

from .interface import Rows, Sum

__all__ = ["kl_slopes", "kl_sums", "takes"]

# Sum.NOTE of rows that were summed here, and of those that may hold tokens which p or both sides
# lack: of two slices `slices.joined` keeps the larger
PLAIN, HOLES = -2.0, -1.0
_TOPS, _LOGS = slice(Sum.P_MAX, Sum.Q_LOG, 2), slice(Sum.P_LOG, Sum.Q_LOG + 1, 2)  # p's and q's


def takes(p: Tensor, q: Tensor | None) -> bool:
    """Say whether it sums logits of these dtypes, on this device."""
    sides = (p, p if q is None else q)
    return len(p) > 0 and all(x.dtype.itemsize <= 4 and x.device.type == "cpu" for x in sides)


def kl_sums(p: Tensor, q: Tensor, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Return normalisers and `Sum.KL`, float64 `[len(Sum), n]`, and the rows that were done, `[n]`.

    >>> p, q = torch.zeros(2, 3), torch.tensor([[0, 0, 1.0], [0, 0, -math.inf]])
    >>> found, done = kl_sums(p, q, 1.0)
    >>> done.tolist(), round(float(found[Sum.KL, 0]), 4)
    ([True, False], 0.1195)
    """
    with np.errstate(all="ignore"):
        sums, holes = _sums(p, q, temperature, None)
        logs = shown = np.log(sums[:2])
        if not abs(logs).max() < limits.SAFE_LOG:
            far = np.flatnonzero(~(abs(logs) < limits.SAFE_LOG).all(0))
            tops = np.stack([x[far].amax(-1).double().numpy() / temperature for x in (p, q)])
            sums[:, far], more = _sums(p[far], q[far], temperature, tops)
            holes, logs = holes or more, np.log(sums[:2])
            shown = logs.copy()
            shown[:, far] += tops
        c = logs[1] - logs[0]
        kl = np.maximum(c - sums[2] / sums[0], 0.0)
        if (small := kl < limits.SMALL_KL * (1 + abs(c))).any():
            some = np.flatnonzero(small)
            A, B = _excess(p[some], q[some], temperature, shown[:, some], holes=holes)
            shown[1, some] += np.log1p(B)
            kl[some] = np.maximum(A + np.log1p(B) - B, 0.0)
    done = np.isfinite(kl)
    # a log-normaliser as a logit that float32 holds, and what is left
    out = np.zeros((len(Sum), len(kl)))
    out[_TOPS] = rounded = (shown * temperature).astype(np.float32)
    out[_LOGS] = shown - rounded.astype(np.float64) / temperature
    out[Sum.KL], out[Sum.NOTE] = kl, HOLES if holes else PLAIN
    out[Sum.NOTE, ~done] = 0.0
    return out, done


def kl_slopes(
    rows: Rows,
    temperature: float,
    sums: np.ndarray,
    c: np.ndarray,
    grad_p: Tensor | None,
    grad_q: Tensor | None,
) -> None:
    """Fill the gradients of KL(p‖q) where `kl_sums` did all rows.

    sums: `[len(Sum), n]`; c: the rows' coefficients `P_ONE`, `P_RATIO` and `Q_STEP` (see `Slope`),
    float64 `[3, n]`.
    """
    p, q = rows.p, rows.p if rows.q is None else rows.q
    logs = sums[_TOPS] / temperature + sums[_LOGS]
    one, ratio, step = c
    holes, tops = bool((sums[Sum.NOTE] != PLAIN).any()), None
    with np.errstate(all="ignore"):
        if abs(logs).max() < limits.SAFE_LOG:
            over = np.exp(-logs)  # what probabilities are e^logit times
            one = one - ratio * (logs[1] - logs[0])
        else:
            tops, over = logs, np.ones_like(logs)
        by_p = torch.from_numpy(np.stack((one, ratio))[..., None] * over[0, :, None])
        by_q = torch.from_numpy((step * over)[..., None])
        sides, grads = (_of(p), _of(q)), (_of(grad_p), _of(grad_q))
        for block in _blocks(p.shape[0], p.shape[1]):
            _load(block, sides, temperature, tops)
            if grad_p is not None:
                _difference(block, holes=holes)
            block.both.exp_()
            if grad_p is not None:
                line = block.d.mul_(by_p[1, block.rows]).add_(by_p[0, block.rows])
                block.write(line.mul_(block.both[0]), grads[0])
            if grad_q is not None:
                u, v = block.both.mul_(by_q[:, block.rows])
                block.write(v.sub_(u), grads[1])


def _of(x: Tensor | None) -> Any:
    """Return logits as an array, whose slices cost little, where NumPy has their dtype at speed."""
    return x.numpy() if x is not None and x.dtype == torch.float32 else x


class _Block(NamedTuple):
    """Rows and columns of `[n, vocab]`, and scratch: for both sides `[2, …]`, and for one more."""

    rows: slice
    columns: slice
    both: Tensor
    d: Tensor
    sides: np.ndarray  # the same memory as `both`
    difference: np.ndarray  # and as `d`

    def read(self, side: int, x: np.ndarray | Tensor) -> None:
        """Copy the block of logits x."""
        if isinstance(x, Tensor):
            self.both[side].copy_(x[self.rows, self.columns])
        else:
            self.sides[side] = x[self.rows, self.columns]

    def write(self, found: Tensor, x: Any) -> None:
        """Copy what was found into the block of x."""
        x[self.rows, self.columns] = found if isinstance(x, Tensor) else found.numpy()


def _blocks(n: int, vocab: int) -> Iterator[_Block]:
    width = -(-vocab // -(-vocab // limits.FLOAT64_BLOCK))  # few blocks to a row, of one size
    rows = max(1, min(n, limits.FLOAT64_BLOCK // vocab))
    scratch = torch.empty(3 * rows * width, dtype=torch.float64, device="cpu").numpy()
    block = None
    for start in range(0, n, rows):
        for left in range(0, vocab, width):
            some, at = slice(start, min(start + rows, n)), slice(left, min(left + width, vocab))
            shape = some.stop - some.start, at.stop - at.start
            if block is None or block.difference.shape != shape:
                three = scratch[: 3 * shape[0] * shape[1]].reshape(3, *shape)
                sides, d = three[:2], three[2]
                block = _Block(some, at, torch.from_numpy(sides), torch.from_numpy(d), sides, d)
            yield _Block(some, at, block.both, block.d, block.sides, block.difference)


def _load(
    block: _Block, sides: tuple[Any, Any], temperature: float, tops: np.ndarray | None
) -> None:
    """Fill a block with the logits over the temperature, less tops `[2, n]`."""
    for side, x in enumerate(sides):
        block.read(side, x)
    if temperature != 1:
        block.both.div_(temperature)
    if tops is not None:
        block.both.sub_(torch.from_numpy(tops[:, block.rows, None]))


def _difference(block: _Block, *, holes: bool) -> Tensor:
    """Return q's less p's in d; 0 where p, or both sides, lack the token, if there may be such."""
    np.subtract(block.sides[1], block.sides[0], out=block.difference)
    return block.d.nan_to_num_(0.0, 0.0, -math.inf) if holes else block.d


def _sums(
    p: Tensor, q: Tensor, temperature: float, tops: np.ndarray | None
) -> tuple[np.ndarray, bool]:
    """Return Σ u, Σ v and Σ u d, `[3, n]`, and whether there may be tokens that a side lacks.

    tops: `[2, n]`, subtracted from the exponents.
    """
    (n, vocab), sides = p.shape, (_of(p), _of(q))
    sums, holes = np.zeros((3, n)), False
    for block in _blocks(n, vocab):
        while True:
            _load(block, sides, temperature, tops)
            _difference(block, holes=holes)
            block.both.exp_()
            weighted = _dot(block)
            if holes or not math.isnan(weighted.sum()):
                break
            holes = True  # −inf less −inf: this block again, and from here on with care
        sums[:2, block.rows] += block.both.sum(-1).numpy()
        sums[2, block.rows] += weighted
    return sums, holes


def _dot(block: _Block) -> np.ndarray:
    """Return Σ u d `[rows]`. NumPy's calls are shorter, but of long rows it may start threads."""
    d, u = block.difference, block.sides[0]
    if d.shape[1] <= limits.SHORT_ROW:
        found: np.ndarray = (d[:, None, :] @ u[:, :, None]).reshape(-1)
    else:
        found = torch.linalg.vecdot(block.d, block.both[0]).numpy()
    return found


def _excess(
    p: Tensor, q: Tensor, temperature: float, logs: np.ndarray, *, holes: bool
) -> np.ndarray:
    """Return Σ p (e^l − 1 − l) and Σ p (e^l − 1), `[2, n]`, of the log-normalisers `[2, n]`.

    A token that p lacks adds its q to both: the limit of its terms as its p goes to 0.
    """
    sums, sides = np.zeros((2, len(p))), (_of(p), _of(q))
    for block in _blocks(p.shape[0], p.shape[1]):
        _load(block, sides, temperature, logs)
        l = _difference(block, holes=holes)  # noqa: E741
        if holes:
            lacks = block.sides[0] == -math.inf
            sums[:, block.rows] += np.where(lacks, np.exp(block.sides[1]), 0.0).sum(-1)
        u, step = block.both[0].exp_(), torch.expm1(l, out=block.both[1])
        sums[1, block.rows] += torch.linalg.vecdot(step, u).numpy()
        sums[0, block.rows] += torch.linalg.vecdot(step.sub_(l), u).numpy()
    return sums
