"""KL(p‖q) in pure PyTorch on a CPU, of logits up to 32 bits wide: in float64, by few passes.

Which to use: nothing here directly; `chunked` takes it where KL(p‖q) is what is asked, and its
general way for the rows that this one leaves: those where p alone has a token, and those without a
distribution.

With u and v the unnormalised masses, and d the differences of the logits, q's less p's,

    KL(p‖q) = log(Σ v / Σ u) − Σ u d / Σ u.

In float32 that would cost most digits of a small KL. In float64 it is known to 1e-15, and no logit
up to ±600 is too large: eight passes over a block that stays in a cache. They are sums, so rows are
cut along the vocabulary too. Where KL is so small that 1e-15 is a part in 10⁷ of it, the terms
`p (e^l − 1 − l)` of the normalised sides are summed instead, l = log q/p.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from kullback.tokens import limits

from .interface import Rows, Slope, Sum

__all__ = ["kl_slopes", "kl_sums", "takes"]

# Sum.NOTE of rows that were summed here, and of those that may hold tokens which p or both sides
# lack: of two slices `slices.joined` keeps the larger
PLAIN, HOLES = -2.0, -1.0


def takes(p: Tensor, q: Tensor | None) -> bool:
    """Say whether it sums logits of these dtypes, on this device."""
    sides = (p, p if q is None else q)
    return len(p) > 0 and all(x.dtype.itemsize <= 4 and x.device.type == "cpu" for x in sides)


def kl_sums(p: Tensor, q: Tensor, temperature: float) -> tuple[Tensor, np.ndarray]:
    """Return normalisers and `Sum.KL`, float64 `[len(Sum), n]`, and the rows that were done, `[n]`.

    >>> p, q = torch.zeros(2, 3), torch.tensor([[0, 0, 1.0], [0, 0, -math.inf]])
    >>> found, done = kl_sums(p, q, 1.0)
    >>> done.tolist(), round(float(found[Sum.KL, 0]), 4)
    ([True, False], 0.1195)
    """
    holes = p[0, -1].item() == -math.inf  # tokens that both sides lack are most often at the end
    tops = None  # what exponents are counted from
    with np.errstate(all="ignore"):
        sums = _sums(p, q, temperature, None, holes=holes)
        if not holes and (lost := np.flatnonzero(np.isnan(sums[2]))).size:
            holes = True
            sums[:, lost] = _sums(p[lost], q[lost], temperature, None, holes=True)
        logs = np.log(sums[:2])
        if (far := np.flatnonzero(~(abs(logs) < limits.SAFE_LOG).all(0))).size:
            tops = np.zeros_like(logs)
            tops[:, far] = [x[far].amax(-1).double().numpy() / temperature for x in (p, q)]
            tops_of = torch.from_numpy(tops[:, far, None])
            sums[:, far] = _sums(p[far], q[far], temperature, tops_of, holes=holes)
            logs = np.log(sums[:2])
        c = logs[1] - logs[0]
        kl = np.maximum(c - sums[2] / sums[0], 0.0)
        done = np.isfinite(kl)
        if (small := np.flatnonzero(done & (kl < limits.SMALL_KL * (1 + abs(c))))).size:
            normal = torch.from_numpy((logs if tops is None else logs + tops)[:, small, None])
            A, B = _excess(p[small], q[small], temperature, normal, holes=holes)
            logs[1, small] += np.log1p(B)
            kl[small] = np.maximum(A + np.log1p(B) - B, 0.0)
        logs = logs if tops is None else logs + tops
        # a log-normaliser as a logit that float32 holds, and what is left
        out = np.zeros((len(Sum), len(p)))
        out[[Sum.P_MAX, Sum.Q_MAX]] = rounded = (logs * temperature).astype(np.float32)
        out[[Sum.P_LOG, Sum.Q_LOG]] = logs - rounded.astype(np.float64) / temperature
        out[Sum.KL], out[Sum.NOTE] = kl, np.where(done, HOLES if holes else PLAIN, 0.0)
    return torch.from_numpy(out), done


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
    holes = bool((sums[Sum.NOTE] != PLAIN).any())
    logs = sums[[Sum.P_MAX, Sum.Q_MAX]] / temperature + sums[[Sum.P_LOG, Sum.Q_LOG]]
    one, ratio, step = coefficients[[Slope.P_ONE, Slope.P_RATIO, Slope.Q_STEP], :, None]
    for some, at, a, b, x in _blocks(p, q, temperature, logs[..., None]):
        l = _difference(a, b, x, holes=holes)  # noqa: E741
        u = a.exp_()  # p itself
        if grad_p is not None:
            grad_p[some, at] = l.mul_(ratio[some]).add_(one[some]).mul_(u)
        if grad_q is not None:
            grad_q[some, at] = b.exp_().sub_(u).mul_(step[some])


def _blocks(
    p: Tensor, q: Tensor, temperature: float, tops: Tensor | None
) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
    """Yield rows and columns of a block, both logits (over the temperature, less tops), scratch."""
    n, vocab = p.shape
    width = -(-vocab // -(-vocab // limits.FLOAT64_BLOCK))  # few blocks to a row, of one size
    rows = max(1, min(n, limits.FLOAT64_BLOCK // vocab))
    scratch = torch.empty(3, rows * width, dtype=torch.float64)
    views: dict[tuple[int, int], tuple[Tensor, ...]] = {}
    for start in range(0, n, rows):
        for left in range(0, vocab, width):
            some, at = slice(start, min(start + rows, n)), slice(left, min(left + width, vocab))
            shape = some.stop - some.start, at.stop - at.start
            if shape not in views:
                views[shape] = scratch[:, : math.prod(shape)].view(3, *shape).unbind()
            a, b, x = views[shape]
            a.copy_(p[some, at]), b.copy_(q[some, at])
            if temperature != 1:
                a.div_(temperature), b.div_(temperature)
            if tops is not None:
                a.sub_(tops[0, some]), b.sub_(tops[1, some])
            yield some, at, a, b, x


def _difference(a: Tensor, b: Tensor, x: Tensor, *, holes: bool) -> Tensor:
    """Return b − a in x; 0 where p, or both sides, lack the token, if there may be such."""
    torch.sub(b, a, out=x)
    return x.nan_to_num_(0.0, 0.0, -math.inf) if holes else x


def _of_rows(found: list[Tensor], n: int) -> np.ndarray:
    """Return the sums `[sums, n]` of blocks' `[sums, rows]`, of which a row may have several."""
    sums = found[0] if len(found) == 1 else torch.cat(found, -1)
    whole: np.ndarray = sums.numpy().reshape(len(sums), n, -1).sum(-1)
    return whole


def _sums(
    p: Tensor, q: Tensor, temperature: float, tops: Tensor | None, *, holes: bool
) -> np.ndarray:
    """Return Σ u, Σ v and Σ u d, `[3, n]`; tops: `[2, n, 1]`, subtracted from the exponents."""
    found = []
    for _, _, a, b, x in _blocks(p, q, temperature, tops):
        d = _difference(a, b, x, holes=holes)
        u = a.exp_()
        found.append(torch.stack((u.sum(-1), b.exp_().sum(-1), d.mul_(u).sum(-1))))
    return _of_rows(found, len(p))


def _excess(p: Tensor, q: Tensor, temperature: float, logs: Tensor, *, holes: bool) -> np.ndarray:
    """Return Σ p (e^l − 1 − l) and Σ p (e^l − 1), `[2, n]`, of the log-normalisers `[2, n, 1]`."""
    found = []
    for _, _, a, b, x in _blocks(p, q, temperature, logs):
        l = _difference(a, b, x, holes=holes)  # noqa: E741
        u = a.exp_()
        step = torch.expm1(l, out=b)
        B = torch.linalg.vecdot(step, u)
        found.append(torch.stack((step.sub_(l).mul_(u).sum(-1), B)))
    return _of_rows(found, len(p))
