# ruff: noqa: ANN001, ANN202, ANN201, FBT003, E741
# mypy: ignore-errors
"""Triton kernels that read both logits once and sum what the values are made of.

Which to use: none of these directly; `triton_backend` launches them, and importing this file
imports the compiler. Rows of logits are cut between programs, each cut is read in tiles, and
`finish` joins the cuts by the chain rule (as in `slices`), which keeps the small differences
between p and q. All tiles of a cut are summed from the same two logits m and n, place by place:
w = e^((a − m)/temperature), v = e^((b − n)/temperature), l = log v/w, and the excess
w (e^l − 1 − l); sums over the places are taken once, after the last tile. With r = Σ v / Σ w,

    KL(p‖q) within the cut = Σ w (e^l − 1 − l) / Σ w − (r − 1 − log r)

which keeps its digits where log r is small beside the KL (`_centred`). First m and n are the
log-normalisers of the first tile; where they turn out to be wrong, those of the cut, which is then
read again. Where one side lacks a token, or a sum is not finite, the cut is summed with care: each
tile as if it were the whole vocabulary, an online softmax, and the tiles joined by the chain rule.

Tokens are of three kinds: both sides have them, or only p, or only q. The divergences are summed
over the first; of the others, of which there are usually none, only the mass is kept. Of a set of
logits x are kept: the maximum, or a logit near it, Σ w, Σ w log w with w = e^((x − maximum) /
temperature), and the place of the maximum; that is m, s, e, i for p and n, t, f, j for q. All sums
are in float32.

`js` and `slopes` read both logits once more, for the Jensen-Shannon sums and the gradients. They
need every row's maxima and log-normalisers.
"""

import triton
import triton.language as tl

from kullback.tokens import limits

from .interface import Slope, Sum

__all__ = ["finish", "forward", "js", "slopes"]

LOW: tl.constexpr = tl.constexpr(float("-inf"))
SERIES: tl.constexpr = tl.constexpr(limits.SERIES_LOG)
NONE: tl.constexpr = tl.constexpr(1 << 30)  # the place of no token
FAR: tl.constexpr = tl.constexpr(limits.LARGEST_LOG_RATIO)
CENTRED: tl.constexpr = tl.constexpr(limits.CENTRED)
CENTRED_SHARE: tl.constexpr = tl.constexpr(limits.CENTRED_SHARE)
HIGH: tl.constexpr = tl.constexpr(limits.HIGH_LOG)
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
# Where the numbers that are kept of a cut stand, and how many there are (STATE). A set of tokens
# has m, s, e, i and, where one side has them alone, a count.
KEPT_KL, KEPT_BACK = tl.constexpr(0), tl.constexpr(1)
KEPT_P, KEPT_Q = tl.constexpr(2), tl.constexpr(6)  # the tokens that both have
KEPT_P_ALONE, KEPT_Q_ALONE = tl.constexpr(10), tl.constexpr(15)
STATE = tl.constexpr(20)
# Rows of the sums; of q each stands `first` = 1 below p's, maximum and log-normaliser 2 below.
P_MAX, P_LOG_SUM = tl.constexpr(int(Sum.P_MAX)), tl.constexpr(int(Sum.P_LOG))
Q_MAX, Q_LOG_SUM = tl.constexpr(int(Sum.Q_MAX)), tl.constexpr(int(Sum.Q_LOG))
ENTROPIES, ALONE = tl.constexpr(int(Sum.P_ENTROPY)), tl.constexpr(int(Sum.P_ALONE))
LOST, TOPS = tl.constexpr(int(Sum.P_LOST)), tl.constexpr(int(Sum.P_TOP))
KL_SUM, BACK_SUM = tl.constexpr(int(Sum.KL)), tl.constexpr(int(Sum.REVERSE_KL))
# Rows of the coefficients of p; those of q begin at ON_Q.
ON_RATIO, ON_LOG = tl.constexpr(int(Slope.P_RATIO)), tl.constexpr(int(Slope.P_LOG))
ON_MIX, ON_STEP = tl.constexpr(int(Slope.P_MIX)), tl.constexpr(int(Slope.P_STEP))
ON_ID, ON_Q = tl.constexpr(int(Slope.P_AT)), tl.constexpr(int(Slope.Q_ONE))


@triton.jit
def excess(u, v, m):
    """Return u (e^m − 1 − m) ≥ 0 where v = u e^m, by a series where m is small."""
    series = 1 / 2 + m * (1 / 6 + m * (1 / 24 + m * (1 / 120 + m * (1 / 720))))
    return tl.where(tl.abs(m) < SERIES, u * (m * m) * series, v - u - u * m)


@triton.jit
def _held(x):
    """Return x, or ±FAR beyond: of finite masks 0 times that is 0, not 0 times infinity."""
    return tl.where(x < -FAR, -FAR, tl.where(x > FAR, FAR, x))


@triton.jit
def _shrink(top, new, scale):
    """Return e^((top − new)/temperature), 0 for the maximum of nothing."""
    return tl.where(
        top == float("-inf"), 0.0, tl.exp((top - tl.where(new == LOW, 0.0, new)) * scale)
    )


@triton.jit
def _tile(x, has, at, scale, ALL: tl.constexpr, ENTROPY: tl.constexpr, TOP: tl.constexpr):
    """Return what is kept of one tile's logits, and w; ALL: as if every place had a token."""
    if ALL:
        top = tl.max(x, 0)
        z = _held((x - top) * scale)
        w = tl.exp(z)
    else:
        top = tl.max(tl.where(has, x, LOW), 0)
        z = tl.where(has, _held((x - tl.where(top == LOW, 0.0, top)) * scale), 0.0)
        w = tl.where(has, tl.exp(z), 0.0)
    e = tl.sum(w * z, 0) if ENTROPY else 0 * top
    i = tl.min(tl.where(has & (x == top), at, NONE), 0) if TOP else NONE
    return top, tl.sum(w, 0), e, i, w


@triton.jit
def _online(m, s, e, i, m2, s2, e2, i2, scale):
    """Join what is kept of two sets of logits of one side."""
    new = tl.maximum(m, m2)
    f, f2 = _shrink(m, new, scale), _shrink(m2, new, scale)
    e = tl.where(m == float("-inf"), 0.0, f * (e + s * _held((m - new) * scale)))
    e2 = tl.where(m2 == float("-inf"), 0.0, f2 * (e2 + s2 * _held((m2 - new) * scale)))
    first = (m > m2) | ((m == m2) & (i < i2))
    return new, f * s + f2 * s2, e + e2, tl.where(first, i, i2)


@triton.jit
def _within(a, b, both, w, v, m, s, n, t, scale, ALL: tl.constexpr, BACK: tl.constexpr):
    """Return KL(p‖q) and KL(q‖p) within one tile, the second 0 unless BACK."""
    s, t = tl.where(s == 0, 1.0, s), tl.where(t == 0, 1.0, t)
    step = ((b - a) - (n - m)) * scale + tl.log(s / t)
    if not ALL:
        step = tl.where(both, _held(step), 0.0)
    p, q = w * (1 / s), v * (1 / t)
    there = tl.sum(excess(p, q, step), 0)
    return there, tl.sum(excess(q, p, -step), 0) if BACK else 0 * there


@triton.jit
def _share(m, s, new, total, n, t, n_new, n_total, scale):
    """Return one of two sets' masses in p and q, and its term of KL(p‖q) and of KL(q‖p)."""
    has = (s > 0) & (t > 0)
    total, n_total = tl.where(has, total, 1.0), tl.where(has, n_total, 1.0)
    ratio = tl.where(has, t, 1.0) / tl.where(has, s, 1.0)
    ratio = tl.log(ratio) + tl.log(total / n_total)
    step = tl.where(has, _held(ratio + ((n - n_new) - (m - new)) * scale), 0.0)
    u = tl.where(has, s / total * _shrink(m, new, scale), 0 * s)  # 0 · NaN stays NaN
    v = tl.where(has, t / n_total * _shrink(n, n_new, scale), 0 * t)
    return u, v, excess(u, v, step), excess(v, u, -step)


@triton.jit
def _chain(kl, rk, m, s, n, t, kl2, rk2, m2, s2, n2, t2, scale):
    """Join KL(p‖q) and KL(q‖p) within two sets by the chain rule."""
    new, n_new = tl.maximum(m, m2), tl.maximum(n, n2)
    total = s * _shrink(m, new, scale) + s2 * _shrink(m2, new, scale)
    n_total = t * _shrink(n, n_new, scale) + t2 * _shrink(n2, n_new, scale)
    u, v, a, b = _share(m, s, new, total, n, t, n_new, n_total, scale)
    u2, v2, a2, b2 = _share(m2, s2, new, total, n2, t2, n_new, n_total, scale)
    return u * kl + u2 * kl2 + a + a2, v * rk + v2 * rk2 + b + b2


@triton.jit
def _keep(to, m, s, e, i):
    """Keep what is known of one set of tokens."""
    tl.store(to, m)
    tl.store(to + 1, s)
    tl.store(to + 2, e)
    tl.store(to + 3, i)


@triton.jit
def _kept(at):
    """Return what `_keep` kept."""
    return tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)


@triton.jit
def _keep_alone(to, m, s, e, i, count):
    """Keep what is known of the tokens that one side has alone."""
    _keep(to, m, s, e, i)
    tl.store(to + 4, count)


@triton.jit
def _owners(a, b):
    """Return which tokens both sides, only p, only q has."""
    p_has, q_has = a != LOW, b != LOW
    return p_has & q_has, p_has & (b == LOW), q_has & (a == LOW)


@triton.jit
def read(p, q, row, p_stride, q_stride, at, vocab):
    """Return a tile of both logits in float32, and which tokens both sides, only p, only q has."""
    a = tl.load(p + row.to(tl.int64) * p_stride + at, mask=at < vocab, other=float("-inf")).to(
        tl.float32
    )
    b = tl.load(q + row.to(tl.int64) * q_stride + at, mask=at < vocab, other=float("-inf")).to(
        tl.float32
    )
    both, p_only, q_only = _owners(a, b)
    return a, b, both, p_only, q_only


@triton.jit
def _carefully(
    p, q, to, begin, end, scale,
    BACK: tl.constexpr, ENTROPY: tl.constexpr, TOP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Sum one cut tile by tile, whoever has its tokens.

    A tile is summed as if both sides had every token. Where one lacks some, that gives ±inf or NaN,
    which is cheaper to see than the tokens; then the tile is summed again, with care.
    """
    zero, low = scale * 0.0, scale * 0.0 - float("inf")  # scalars on the device, as sums are
    kl, rk, ac, bc = zero, zero, zero, zero
    m, s, e, i = low, zero, zero, NONE
    n, t, f, j = low, zero, zero, NONE
    am, as_, ae, ai = low, zero, zero, NONE
    bm, bs, be, bi = low, zero, zero, NONE
    for start in range(begin, end, TILE):
        a, b, at = _pair(p, q, start, end, True, TILE)
        both, p_only, q_only = _owners(a, b)
        m2, s2, e2, i2, w = _tile(a, both, at, scale, True, ENTROPY, TOP)
        n2, t2, f2, j2, v = _tile(b, both, at, scale, True, ENTROPY, TOP)
        kl2, rk2 = _within(a, b, both, w, v, m2, s2, n2, t2, scale, True, BACK)
        if kl2 - kl2 != 0:
            m2, s2, e2, i2, w = _tile(a, p_only, at, scale, False, ENTROPY, TOP)
            am, as_, ae, ai = _online(am, as_, ae, ai, m2, s2, e2, i2, scale)
            n2, t2, f2, j2, v = _tile(b, q_only, at, scale, False, ENTROPY, TOP)
            bm, bs, be, bi = _online(bm, bs, be, bi, n2, t2, f2, j2, scale)
            ac += tl.sum(p_only.to(tl.float32), 0)
            bc += tl.sum(q_only.to(tl.float32), 0)
            m2, s2, e2, i2, w = _tile(a, both, at, scale, False, ENTROPY, TOP)
            n2, t2, f2, j2, v = _tile(b, both, at, scale, False, ENTROPY, TOP)
            kl2, rk2 = _within(a, b, both, w, v, m2, s2, n2, t2, scale, False, BACK)
        kl, rk = _chain(kl, rk, m, s, n, t, kl2, rk2, m2, s2, n2, t2, scale)
        m, s, e, i = _online(m, s, e, i, m2, s2, e2, i2, scale)
        n, t, f, j = _online(n, t, f, j, n2, t2, f2, j2, scale)
    tl.store(to + KEPT_KL, kl)
    tl.store(to + KEPT_BACK, rk)
    _keep(to + KEPT_P, m, s, e, i)
    _keep(to + KEPT_Q, n, t, f, j)
    _keep_alone(to + KEPT_P_ALONE, am, as_, ae, ai, ac)
    _keep_alone(to + KEPT_Q_ALONE, bm, bs, be, bi, bc)


@triton.jit
def _pair(p, q, start, end, MASK: tl.constexpr, TILE: tl.constexpr):
    """Return a tile of both logits in float32; p, q: pointers to the row."""
    at = start + tl.arange(0, TILE)
    if MASK:
        a = tl.load(p + at, mask=at < end, other=float("-inf"))
        b = tl.load(q + at, mask=at < end, other=float("-inf"))
    else:
        a, b = tl.load(p + at), tl.load(q + at)
    return a.to(tl.float32), b.to(tl.float32), at


@triton.jit
def _top(x):
    """Return the largest logit of a tile, 0 where there is none."""
    top = tl.max(x, 0)
    return tl.where(top == LOW, 0.0, top)


@triton.jit
def _moved(m, s, scale):
    """Return the logit whose e^(m / temperature) is s times that of m, or m where s is no mass."""
    return m + tl.where((s > 0) & (s < float("inf")), tl.log(s) / scale, 0.0)


@triton.jit
def _first(p, q, start, end, scale, TILE: tl.constexpr):
    """Return the log-normalisers, as logits, of a cut's first tile."""
    a, b, _ = _pair(p, q, start, end, True, TILE)
    m, n = _top(a), _top(b)
    s = tl.sum(tl.exp((a - m) * scale), 0)
    t = tl.sum(tl.exp((b - n) * scale), 0)
    return _moved(m, s, scale), _moved(n, t, scale)


@triton.jit
def _add(
    a, b, at, m, n, scale, s, t, kl, rk, far, e, f, pm, pi, qm, qi,
    BACK: tl.constexpr, ENTROPY: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    """Add a tile to the sums, which stay apart for every place in it.

    Where both lack a token, w = v = 0 and l is NaN, which `maximum` turns into a number: its terms
    are 0. Where one lacks it, `far` becomes infinite.
    """
    y, z = (a - m) * (scale * LOG2_E), (b - n) * (scale * LOG2_E)
    w, v = tl.exp2(y), tl.exp2(z)
    d = b - a
    far = tl.maximum(far, tl.abs(d))
    l = (tl.maximum(d, -FAR) - (n - m)) * scale
    s += w
    t += v
    kl += excess(w, v, l)
    if BACK:
        rk += excess(v, w, -l)
    if ENTROPY:
        e += w * tl.maximum(y, -FAR)
        f += v * tl.maximum(z, -FAR)
    if TOP:
        pi = tl.where(a > pm, at, pi)
        qi = tl.where(b > qm, at, qi)
        pm, qm = tl.maximum(pm, a), tl.maximum(qm, b)
    return s, t, kl, rk, far, e, f, pm, pi, qm, qi


@triton.jit
def _sums(
    p, q, begin, end, m, n, scale,
    BACK: tl.constexpr, ENTROPY: tl.constexpr, TOP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Return the sums over a cut and whether all tokens are of both sides, or of none."""
    zero = tl.zeros([TILE], tl.float32)
    s, t, kl, rk, far, e, f = zero, zero, zero, zero, zero, zero, zero
    pm, qm = zero - float("inf"), zero - float("inf")
    pi, qi = tl.full([TILE], NONE, tl.int32), tl.full([TILE], NONE, tl.int32)
    whole = begin + (end - begin) // TILE * TILE
    for start in range(begin, whole, TILE):
        a, b, at = _pair(p, q, start, end, False, TILE)
        s, t, kl, rk, far, e, f, pm, pi, qm, qi = _add(
            a, b, at, m, n, scale, s, t, kl, rk, far, e, f, pm, pi, qm, qi, BACK, ENTROPY, TOP
        )
    if whole < end:
        a, b, at = _pair(p, q, whole, end, True, TILE)
        s, t, kl, rk, far, e, f, pm, pi, qm, qi = _add(
            a, b, at, m, n, scale, s, t, kl, rk, far, e, f, pm, pi, qm, qi, BACK, ENTROPY, TOP
        )
    s, t, kl, far = tl.sum(s, 0), tl.sum(t, 0), tl.sum(kl, 0), tl.max(far, 0)
    none = 0 * s
    rk = tl.sum(rk, 0) if BACK else none
    e = tl.sum(e, 0) / LOG2_E if ENTROPY else none
    f = tl.sum(f, 0) / LOG2_E if ENTROPY else none
    top_p = tl.max(pm, 0) if TOP else none + m
    top_q = tl.max(qm, 0) if TOP else none + n
    i = tl.min(tl.where(pm == top_p, pi, NONE), 0) if TOP else NONE
    j = tl.min(tl.where(qm == top_q, qi, NONE), 0) if TOP else NONE
    return s, t, kl, rk, far < FAR, e, f, top_p, i, top_q, j


@triton.jit
def _centred(s, t, kl, rk, BACK: tl.constexpr):
    """Return both divergences within a cut from its sums; whether they are finite; and exact."""
    inf = float("inf")
    finite = (s > 0) & (s < inf) & (t > 0) & (t < inf) & (kl < inf) & (rk < inf)
    s, t = tl.where(finite, s, 1.0), tl.where(finite, t, 1.0)
    r = tl.log(t / s)
    kl = kl / s - excess(1.0, t / s, r)
    rk = rk / t - excess(1.0, s / t, -r) if BACK else rk
    kl, rk = tl.where(kl < 0, 0.0, kl), tl.where(rk < 0, 0.0, rk)  # by rounding
    least = tl.minimum(kl, rk) if BACK else kl
    off = tl.abs(r) * (1 + tl.abs(r))
    centred = (off < CENTRED) | (off * CENTRED_SHARE < least)
    centred = centred & (s < HIGH) & (t < HIGH)
    return kl, rk, finite, centred


@triton.jit
def _on_top(s, e, m, top, scale):
    """Return s and e counted from the logit `top` where they were counted from m."""
    change = (m - top) * scale
    return tl.exp(change) * s, tl.exp(change) * (e + s * change)


@triton.jit
def forward(
    p, q, state, p_stride, q_stride, vocab, cut, scale,
    BACK: tl.constexpr, ENTROPY: tl.constexpr, TOP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Sum one cut of one row; programs: rows × cuts."""
    row, part = tl.program_id(0), tl.program_id(1)
    p += row.to(tl.int64) * p_stride
    q += row.to(tl.int64) * q_stride
    begin, end = part * cut, tl.minimum(part * cut + cut, vocab)
    m, n = _first(p, q, begin, end, scale, TILE)
    s, t, kl, rk, e, f = m * 0.0, m * 0.0, m * 0.0, m * 0.0, m * 0.0, m * 0.0
    top_p, top_q, i, j = m, n, NONE, NONE
    tries, good = 0, 0
    while tries < 2:
        m, n = _moved(m, s, scale), _moved(n, t, scale)
        s, t, kl, rk, shared, e, f, top_p, i, top_q, j = _sums(
            p, q, begin, end, m, n, scale, BACK, ENTROPY, TOP, TILE
        )
        kl, rk, finite, centred = _centred(s, t, kl, rk, BACK)
        good = (finite & shared).to(tl.int32)
        tries = tl.where(finite & shared & (centred == 0), tries + 1, 2)
    to = state + (row * tl.num_programs(1) + part) * STATE
    if good == 0:
        _carefully(p, q, to, begin, end, scale, BACK, ENTROPY, TOP, TILE)
    else:
        if TOP:
            s, e = _on_top(s, e, m, top_p, scale)
            t, f = _on_top(t, f, n, top_q, scale)
        tl.store(to + KEPT_KL, kl)
        tl.store(to + KEPT_BACK, rk)
        _keep(to + KEPT_P, top_p, s, e, i)
        _keep(to + KEPT_Q, top_q, t, f, j)
        _keep_alone(to + KEPT_P_ALONE, float("-inf"), 0.0, 0.0, NONE, 0.0)
        _keep_alone(to + KEPT_Q_ALONE, float("-inf"), 0.0, 0.0, NONE, 0.0)


@triton.jit
def _restore(at, kl, rk, m, s, e, i, n, t, f, j, scale):
    """Join what was kept of a cut to what is known of a row, but for tokens of one side alone."""
    m2, s2, e2, i2 = _kept(at + KEPT_P)
    n2, t2, f2, j2 = _kept(at + KEPT_Q)
    kl2, rk2 = tl.load(at + KEPT_KL), tl.load(at + KEPT_BACK)
    kl, rk = _chain(kl, rk, m, s, n, t, kl2, rk2, m2, s2, n2, t2, scale)
    m, s, e, i = _online(m, s, e, i, m2, s2, e2, i2, scale)
    n, t, f, j = _online(n, t, f, j, n2, t2, f2, j2, scale)
    return kl, rk, m, s, e, i, n, t, f, j


@triton.jit
def _alone(at, m, s, e, i, count, scale):
    """Join what was kept of the tokens that one side has alone."""
    m2, s2, e2, i2 = _kept(at)
    m, s, e, i = _online(m, s, e, i, m2, s2, e2, i2, scale)
    return m, s, e, i, count + tl.load(at + 4)


@triton.jit
def _write(out, rows, first, m, s, e, i, am, as_, ae, ai, count, scale):
    """Write the sums of one side, `first` being 0 for p and 1 for q.

    Return its mass alone, and the log of its mass that both sides have, also where that underflows.
    """
    top, total, e, i = _online(m, s, e, i, am, as_, ae, ai, scale)
    none = (total == 0) | (total != total) | (total == float("inf"))
    log = tl.where(none, float("nan"), tl.log(total))
    lost = tl.where(count == 0, 0.0, as_ * _shrink(am, top, scale) / total)
    tl.store(out + (P_MAX + 2 * first) * rows, top)
    tl.store(out + (P_LOG_SUM + 2 * first) * rows, log)
    tl.store(out + (ENTROPIES + first) * rows, log - e / total)
    tl.store(out + (ALONE + first) * rows, tl.where(none, 0.0, count))
    tl.store(out + (LOST + first) * rows, lost)
    tl.store(out + (TOPS + first) * rows, i)
    direct = tl.log(tl.where(s == 0, 1.0, s)) + (m - top) * scale - log
    log_kept = tl.where(lost < 0.5, tl.log(1 - lost), tl.where(s == 0, -1e30, direct))
    return lost + 0 * log, log_kept + 0 * log


@triton.jit
def finish(state, out, rows, cuts, scale):
    """Join the cuts of one row into its `Sum`s, out float64 `[len(Sum), rows]`; programs: rows."""
    row = tl.program_id(0)
    zero, low = scale * 0.0, scale * 0.0 - float("inf")  # scalars on the device, as sums are
    kl, rk, ac, bc = zero, zero, zero, zero
    m, s, e, i = low, zero, zero, 1e9
    n, t, f, j = low, zero, zero, 1e9
    am, as_, ae, ai = low, zero, zero, 1e9
    bm, bs, be, bi = low, zero, zero, 1e9
    for part in range(cuts):
        at = state + (row * cuts + part) * STATE
        kl, rk, m, s, e, i, n, t, f, j = _restore(at, kl, rk, m, s, e, i, n, t, f, j, scale)
        am, as_, ae, ai, ac = _alone(at + KEPT_P_ALONE, am, as_, ae, ai, ac, scale)
        bm, bs, be, bi, bc = _alone(at + KEPT_Q_ALONE, bm, bs, be, bi, bc, scale)
    p_lost, p_kept = _write(out + row, rows, 0, m, s, e, i, am, as_, ae, ai, ac, scale)
    q_lost, q_kept = _write(out + row, rows, 1, n, t, f, j, bm, bs, be, bi, bc, scale)
    # with the masses s that both sides have: 1 − s_p + s_p (KL within + log s_p / s_q)
    some = (s > 0) & (t > 0)
    apart = tl.where(some, p_kept - q_kept, 0 * (p_kept + q_kept))
    tl.store(out + row + KL_SUM * rows, p_lost + tl.exp(p_kept) * (kl + apart))
    tl.store(out + row + BACK_SUM * rows, q_lost + tl.exp(q_kept) * (rk - apart))


@triton.jit
def _expm1(m):
    """Return e^m − 1, by a series where m is small."""
    series = 1 / 24 + m * (1 / 120 + m * (1 / 720))
    series = m * (1 + m * (1 / 2 + m * (1 / 6 + m * series)))
    return tl.where(tl.abs(m) < SERIES, series, tl.exp(m) - 1)


@triton.jit
def _log1p(z):
    """Return log(1 + z), −1 < z ≤ 0, with the rounding of 1 + z undone."""
    u = 1 + z
    return tl.where(u == 1, z, tl.log(u) * (z / tl.where(u == 1, 1.0, u - 1)))


@triton.jit
def _mixed(l, both, p_only, beta):
    """Return log m/p and log m/q, m = β p + (1−β) q, from l = log q/p."""
    other = tl.where(l > 0, beta, 1 - beta)  # weight of the side that has less of the token
    more = _log1p(other * _expm1(-tl.abs(l)))
    x = tl.where(l > 0, more + l, more)
    y = tl.where(l > 0, more, more - l)
    return tl.where(both, x, tl.log(beta)), tl.where(both, y, tl.log(1 - beta))


@triton.jit
def _norms(sums, row, rows):
    """Return a row's maximum and log-normaliser in p, and those in q."""
    at = sums + row
    top = tl.load(at + P_MAX * rows).to(tl.float32)
    log = tl.load(at + P_LOG_SUM * rows).to(tl.float32)
    n = tl.load(at + Q_MAX * rows).to(tl.float32)
    return top, log, n, tl.load(at + Q_LOG_SUM * rows).to(tl.float32)


@triton.jit
def _probs(p, q, row, p_stride, q_stride, at, vocab, top, log, n, q_norm, scale):
    """Return log p, log q, p, q and l = log q/p of a tile, and which tokens who has."""
    a, b, both, p_only, q_only = read(p, q, row, p_stride, q_stride, at, vocab)
    p_log = (a - tl.where(top == LOW, 0.0, top)) * scale - log
    q_log = (b - tl.where(n == LOW, 0.0, n)) * scale - q_norm
    l = tl.where(both, ((b - a) - (n - top)) * scale + (log - q_norm), 0.0)
    nan = 0 * (log + q_norm)
    p_log, q_log, l = _held(p_log), _held(q_log), _held(l)
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
    over_p, over_q = tl.zeros([TILE], tl.float32), tl.zeros([TILE], tl.float32)
    top, log, n, q_norm = _norms(sums, row, rows)
    for start in range(part * cut, tl.minimum(part * cut + cut, vocab), TILE):
        at = start + tl.arange(0, TILE)
        _, _, u, v, l, both, p_only, q_only = _probs(
            p, q, row, p_stride, q_stride, at, vocab, top, log, n, q_norm, scale
        )
        x, y = _mixed(l, both, p_only, beta)
        mix = beta * u + (1 - beta) * v
        over_p += tl.where(q_only, (1 - beta) * v, excess(u, mix, x))
        over_q += tl.where(p_only, beta * u, excess(v, mix, y))
    over_p, over_q = tl.sum(over_p, 0), tl.sum(over_q, 0)
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
        inner += tl.load(c + row + ON_RATIO * rows).to(tl.float32) * l
    if LOG:
        inner += tl.load(c + row + ON_LOG * rows).to(tl.float32) * log
    if MIX:
        inner += tl.load(c + row + ON_MIX * rows).to(tl.float32) * mix
    found = mass * inner
    if STEP:
        found += tl.load(c + row + ON_STEP * rows).to(tl.float32) * step
    if AT:
        found += tl.where(hit, tl.load(c + row + ON_ID * rows).to(tl.float32), 0.0)
    return found


@triton.jit
def slopes(
    p, q, sums, c, ids, keep, grad_p, grad_q, p_stride, q_stride, gp_stride, gq_stride, vocab, rows,
    scale, beta, TO_P: tl.constexpr, TO_Q: tl.constexpr, KL: tl.constexpr, BACK: tl.constexpr,
    P_LOG: tl.constexpr, Q_LOG: tl.constexpr, MIX: tl.constexpr, AT: tl.constexpr,
    KEEP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Write a tile of both gradients (see `Slope`); programs: rows × tiles."""
    row = tl.program_id(0)  # the first axis, which alone may have more than 65,535
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    top, log, n, q_norm = _norms(sums, row, rows)
    p_log, q_log, u, v, l, both, p_only, q_only = _probs(
        p, q, row, p_stride, q_stride, at, vocab, top, log, n, q_norm, scale
    )
    x, y = l, l
    if MIX:
        x, y = _mixed(l, both, p_only, beta)
    step = tl.where(both & (tl.abs(l) < SERIES), u * _expm1(l), v - u)
    hit = at < 0
    if AT:
        hit = at == tl.load(ids + row)
    p_has, q_has, nan = both | p_only, both | q_only, 0 * (u + v)
    inside = at < vocab
    live = tl.load(keep + row) if KEEP else at >= 0
    if TO_P:
        found = _slope(c, row, rows, u, p_log, l, x, step, hit, KL, P_LOG, BACK, MIX, AT)
        found = tl.where(live, tl.where(p_has, found, nan), 0.0)
        tl.store(grad_p + row.to(tl.int64) * gp_stride + at, found, mask=inside)
    if TO_Q:
        found = _slope(
            c + ON_Q * rows, row, rows, v, q_log, l, y, step, hit, BACK, Q_LOG, KL, MIX, AT
        )
        found = tl.where(live, tl.where(q_has, found, nan), 0.0)
        tl.store(grad_q + row.to(tl.int64) * gq_stride + at, found, mask=inside)
