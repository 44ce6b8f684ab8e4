"""Triton kernels that read both logits once more: gradients, and the Jensen-Shannon sums.

Which to use: none of these directly; `triton_backend` launches them, and importing this file
imports the compiler. They need every row's maxima and log-normalisers (`triton_kernels`).
"""

import triton
import triton.language as tl

from .triton_kernels import LOW, excess, read

__all__ = ["js", "slopes"]


@triton.jit
def _expm1(m):
    """Return e^m − 1, by a series where m is small."""
    series = 1 / 24 + m * (1 / 120 + m * (1 / 720))
    series = m * (1 + m * (1 / 2 + m * (1 / 6 + m * series)))
    return tl.where(tl.abs(m) < 0.25, series, tl.exp(m) - 1)


@triton.jit
def _log1p(z):
    """Return log(1 + z), −1 < z ≤ 0, with the rounding of 1 + z undone."""
    u = 1 + z
    return tl.where(u == 1, z, tl.log(u) * (z / tl.where(u == 1, 1.0, u - 1)))


@triton.jit
def _mixed(l, both, p_only, beta):
    """Return log m/p and log m/q, m = β p + (1−β) q, from l = log q/p."""
    down = _log1p((1 - beta) * _expm1(tl.minimum(l, 0.0)))
    up = _log1p(beta * _expm1(-tl.maximum(l, 0.0)))
    x = tl.where(l > 0, up + l, down)
    y = tl.where(l > 0, up, down - l)
    return tl.where(both, x, tl.log(beta)), tl.where(both, y, tl.log(1 - beta))


@triton.jit
def _probs(p, q, row, p_stride, q_stride, at, vocab, sums, rows, scale):
    """Return log p, log q, p, q and l = log q/p of a tile, and which tokens who has."""
    a, b, both, p_only, q_only = read(p, q, row, p_stride, q_stride, at, vocab)
    top, log = tl.load(sums + row).to(tl.float32), tl.load(sums + row + rows).to(tl.float32)
    p_log = (a - tl.where(top == LOW, 0.0, top)) * scale - log
    n, q_norm = tl.load(sums + row + 2 * rows), tl.load(sums + row + 3 * rows).to(tl.float32)
    n = n.to(tl.float32)
    q_log = (b - tl.where(n == LOW, 0.0, n)) * scale - q_norm
    l = tl.where(both, ((b - a) - (n - top)) * scale + (log - q_norm), 0.0)
    nan = 0 * (log + q_norm)
    p_log = tl.where(a == LOW, nan, p_log)
    q_log = tl.where(b == LOW, nan, q_log)
    u = tl.where(both | p_only, tl.exp(p_log), nan)
    v = tl.where(both | q_only, tl.exp(q_log), nan)
    return p_log, q_log, u, v, l + nan, both, p_only, q_only


@triton.jit
def js(
    p, q, sums, partial, p_stride, q_stride, vocab, rows, cut, scale, beta, TILE: tl.constexpr
):  # fmt: skip
    """Sum KL(p‖m) and KL(q‖m) over one cut of one row, `[2, rows, cuts]`; programs: rows × cuts."""
    row, part = tl.program_id(0), tl.program_id(1)
    over_p, over_q = scale * 0.0, scale * 0.0
    for start in range(part * cut, tl.minimum(part * cut + cut, vocab), TILE):
        at = start + tl.arange(0, TILE)
        _, _, u, v, l, both, p_only, q_only = _probs(
            p, q, row, p_stride, q_stride, at, vocab, sums, rows, scale
        )
        x, y = _mixed(l, both, p_only, beta)
        mix = beta * u + (1 - beta) * v
        over_p += tl.sum(tl.where(q_only, (1 - beta) * v, excess(u, mix, x)), 0)
        over_q += tl.sum(tl.where(p_only, beta * u, excess(v, mix, y)), 0)
    at = partial + row * tl.num_programs(1) + part
    tl.store(at, over_p)
    tl.store(at + rows * tl.num_programs(1), over_q)


@triton.jit
def _slope(
    c, row, rows, mass, log, l, mix, step, hit,
    RATIO: tl.constexpr, LOG: tl.constexpr, STEP: tl.constexpr, MIX: tl.constexpr, AT: tl.constexpr,
):  # fmt: skip
    """Return one side's gradient: its six coefficients (see `Slope`) applied to a tile."""
    inner = tl.load(c + row).to(tl.float32)
    if RATIO:
        inner += tl.load(c + row + rows).to(tl.float32) * l
    if LOG:
        inner += tl.load(c + row + 2 * rows).to(tl.float32) * log
    if MIX:
        inner += tl.load(c + row + 3 * rows).to(tl.float32) * mix
    found = mass * inner
    if STEP:
        found += tl.load(c + row + 4 * rows).to(tl.float32) * step
    if AT:
        found += tl.where(hit, tl.load(c + row + 5 * rows).to(tl.float32), 0.0)
    return found


@triton.jit
def slopes(
    p, q, sums, c, ids, keep, grad_p, grad_q, p_stride, q_stride, gp_stride, gq_stride, vocab, rows,
    scale, beta, TO_P: tl.constexpr, TO_Q: tl.constexpr, KL: tl.constexpr, BACK: tl.constexpr,
    P_LOG: tl.constexpr, Q_LOG: tl.constexpr, MIX: tl.constexpr, AT: tl.constexpr,
    KEEP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Write a tile of both gradients (see `Slope`); programs: tiles × rows."""
    row = tl.program_id(1)
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    p_log, q_log, u, v, l, both, p_only, q_only = _probs(
        p, q, row, p_stride, q_stride, at, vocab, sums, rows, scale
    )
    x, y = l, l
    if MIX:
        x, y = _mixed(l, both, p_only, beta)
    step = tl.where(both & (tl.abs(l) < 0.25), u * _expm1(l), v - u)
    hit = at < 0
    if AT:
        hit = at == tl.load(ids + row)
    p_has, q_has, nan = both | p_only, both | q_only, 0 * (u + v)
    inside = at < vocab
    if KEEP:
        live = tl.load(keep + row)
    else:
        live = True
    if TO_P:
        found = _slope(c, row, rows, u, p_log, l, x, step, hit, KL, P_LOG, BACK, MIX, AT)
        found = tl.where(live, tl.where(p_has, found, nan), 0.0)
        tl.store(grad_p + row.to(tl.int64) * gp_stride + at, found, mask=inside)
    if TO_Q:
        found = _slope(c + 6 * rows, row, rows, v, q_log, l, y, step, hit, BACK, Q_LOG, KL, MIX, AT)
        found = tl.where(live, tl.where(q_has, found, nan), 0.0)
        tl.store(grad_q + row.to(tl.int64) * gq_stride + at, found, mask=inside)
