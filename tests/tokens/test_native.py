"""The compiled loop against the reference in float64: dtypes, infinities, strides, instructions."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kullback import tokens
from kullback.tokens.backends import native
from kullback.tokens.backends.interface import Sum, Task

REASON = tokens.usable(torch.zeros(1, 2), torch.zeros(1, 2))["native"]
pytestmark = pytest.mark.skipif(bool(REASON), reason=f"native: {REASON}")

INF = math.inf
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
FUNCTIONS = {
    "kl": lambda p, q, ids, **more: tokens.kl(p, q, **more),
    "js": lambda p, q, ids, **more: tokens.js(p, q, beta=0.3, **more),
    "jeffreys": lambda p, q, ids, **more: tokens.jeffreys(p, q, **more),
    "cross_entropy": lambda p, q, ids, **more: tokens.cross_entropy(p, q, **more),
    "entropy": lambda p, q, ids, **more: tokens.entropy(p, **more),
    "log_prob": lambda p, q, ids, **more: tokens.log_prob(p, ids, **more),
    "compare": lambda p, q, ids, **more: torch.stack(
        [value.double() for value in tokens.compare(p, q, ids=ids, **more)]
    ),
}


def logits(rows, vocab, distance=0.5, seed=0, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(rows, vocab, generator=generator, dtype=torch.float64) * spread
    return p, p + distance * torch.randn(rows, vocab, generator=generator, dtype=torch.float64)


def banned(kind, p, q):
    """Both with −inf: on both sides alike, on either alone, on both but not alike."""
    vocab = p.shape[-1]
    generator = torch.Generator().manual_seed(3)
    some, others = (torch.rand(vocab, generator=generator) < 0.05 for _ in range(2))
    few = torch.ones(vocab, dtype=torch.bool)
    few[torch.randperm(vocab, generator=generator)[:100]] = False
    last = torch.arange(vocab) >= vocab - 64
    none = torch.zeros_like(some)
    for_p, for_q = {
        "none": (none, none),
        "last 64": (last, last),
        "first block": (torch.arange(vocab) < 2048, torch.arange(vocab) < 2048),
        "scattered": (some, some),
        "scattered, p only": (some, none),
        "scattered, q only": (none, some),
        "scattered apart": (some, others),
        "all but 100": (few, few),
        "all but 100, p only": (few, none),
        "all but 100, q only": (none, few),
    }[kind]
    return p.masked_fill(for_p, -INF), q.masked_fill(for_q, -INF)


KINDS = [
    "none",
    "last 64",
    "first block",
    "scattered",
    "scattered, p only",
    "scattered, q only",
    "scattered apart",
    "all but 100",
    "all but 100, p only",
    "all but 100, q only",
]


def with_gradients(name, p, q, ids, **more):
    p, q = (x.detach().requires_grad_() for x in (p, q))
    value = FUNCTIONS[name](p, q, ids, **more)
    weights = 1.0 + torch.arange(value.numel(), dtype=torch.float64).view(value.shape) / 7
    (value.double() * weights).where(value.isfinite(), value.detach() * 0).sum().backward()
    return value.detach(), *(torch.zeros_like(x) if x.grad is None else x.grad for x in (p, q))


def rounded(p, q):
    """What one token's float32 arithmetic may be off by, relative: `2^-24 (8 + |l|)`.

    The log-ratio l and the exponent are rounded by half an ulp, so their exponentials by 2^-24
    times their size; each of the two polynomials, and the product and sum of a term, by an ulp.
    """
    gap = torch.where(p.isfinite() & q.isfinite(), (p - q).double(), 0).abs().max()
    return 2.0**-24 * (8 + float(gap))


def held_to_reference(name, p, q, ids, temperature=1.0, **more):
    """Values to what is rounded (in float64 to 1e-13); gradients, masses times logarithms, too.

    Few tokens carry a row of these: over a vocabulary's worth the error is below 3e-7 (below). A
    mass is the exponential of its logarithm, of which the scale, the difference from the anchor and
    the product are rounded, by 2^-24 of it each.
    """
    more["temperature"] = temperature
    wide = torch.float64 in (p.dtype, q.dtype if name not in ("entropy", "log_prob") else p.dtype)
    found = with_gradients(name, p, q, ids, backend="native", **more)
    truth = with_gradients(name, p.double(), q.double(), ids, backend="reference", **more)
    finite = truth[0].isfinite()
    assert torch.equal(found[0].double()[~finite], truth[0][~finite])
    share = rounded(p.double() / temperature, q.double() / temperature)
    values = 1e-13 if wide else min(share, 2.0**-20)
    logs = [(x.double() / temperature).log_softmax(-1) for x in (p, q)]
    sizes = [torch.where(log.isfinite(), log.abs(), 0) for log in logs]
    masses = values if wide else values + 3 * 2.0**-24 * sum(sizes)
    pairs = zip(logs, sizes, strict=True)
    entropies = sum((log.exp() * size).sum(-1, keepdim=True) for log, size in pairs)
    sizes = 1 + sum(sizes) + entropies  # of the logarithms that a mass is multiplied by
    terms = sum(log.exp() for log in logs) * sizes / temperature
    tolerance = masses * (1 + found[0].numel() / 7) * (7 if name == "compare" else 2) * terms
    # 3e-6 at most (1e-13 in float64), times the largest weight that one of `compare`'s values has
    weight = 1 + (found[0].numel() - 1) / 7 if name == "compare" else 1
    tolerance = tolerance.clamp(max=(1e-13 if wide else 3e-6) * weight)
    if name in ("kl", "js", "jeffreys"):
        scale = truth[0][finite]
    else:  # logarithms are as accurate as their largest terms
        scale = truth[0][finite].abs().clamp(min=1.0) * 4
    assert ((found[0].double() - truth[0])[finite].abs() <= values * scale).all()
    for mine, true, side in zip(found[1:], truth[1:], (p, q), strict=True):
        assert mine.dtype == side.dtype
        rounding = torch.finfo(side.dtype).eps * true.abs() + torch.finfo(side.dtype).tiny
        least = 2.0**-24 if side.dtype == torch.float16 else 0.0  # its least step
        assert ((mine.double() - true).abs() <= tolerance + rounding + least).all()


@pytest.mark.sweep(7)
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_dtype_with_infinities_anywhere(name, dtype, kind):
    p, q = banned(kind, *logits(3, 4500))
    ids = torch.tensor([4400, 3000, 4000])
    held_to_reference(name, p.to(dtype), q.to(dtype), ids, temperature=0.8)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", ["kl", "js", "jeffreys", "compare"])
@pytest.mark.parametrize("p_dtype", DTYPES)
@pytest.mark.parametrize("q_dtype", DTYPES)
def test_two_dtypes(name, p_dtype, q_dtype):
    p, q = banned("scattered, p only", *logits(2, 2100))
    held_to_reference(name, p.to(p_dtype), q.to(q_dtype), torch.tensor([2099, 0]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_with_strides_and_one_row_for_all(dtype):
    p, q = (x.to(dtype) for x in logits(12, 4100))
    views = {
        "every other row": lambda x: x[::2, 1:4098],
        "three axes": lambda x: x.view(3, 4, 4100)[:, 1:3, :4097],
        "transposed": lambda x: x.view(3, 4, 4100).transpose(0, 1),
        "one row": lambda x: x[:1].expand(12, -1),
    }
    for view in views.values():
        a, b = view(p), view(q)
        whole = with_gradients("kl", a.contiguous(), b.contiguous(), None, backend="native")
        for mine, true in zip(
            with_gradients("kl", a, b, None, backend="native"), whole, strict=True
        ):
            assert torch.equal(mine, true)
    mixed = tokens.kl(p, q[0], backend="native")
    assert torch.equal(mixed, tokens.kl(p, q[:1].expand_as(p).contiguous(), backend="native"))


@st.composite
def cases(draw):
    rows, vocab = draw(st.integers(1, 3)), draw(st.integers(1, 4200))
    kind = draw(st.sampled_from(["none", "scattered", "scattered, p only", "scattered apart"]))
    p, q = banned(kind, *logits(rows, vocab, draw(st.floats(1e-3, 8)), draw(st.integers(0, 99))))
    p[:, 0] = q[:, 0] = 1.0
    dtypes = (draw(st.sampled_from(DTYPES)) for _ in range(2))
    p, q = (x.to(dtype) for x, dtype in zip((p, q), dtypes, strict=True))
    return p, q, torch.zeros(rows, dtype=torch.int64), draw(st.sampled_from([0.3, 1.0, 2.5]))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(case=cases(), name=st.sampled_from(["kl", "js", "jeffreys", "entropy", "log_prob"]))
def test_any_shape(case, name):
    p, q, ids, temperature = case
    held_to_reference(name, p, q, ids, temperature=temperature, nan="pass")


@pytest.mark.parametrize("distance", [4.2e-4, 1.3e-3, 0.042, 0.42, 3.0, 7.0])
def test_relative_error_from_a_ten_millionth_to_fourteen(distance):
    p, q = (x.float() for x in logits(4, 20_000, distance, seed=5))
    found = tokens.kl(p, q, backend="native").double()
    truth = tokens.kl(p.double(), q.double(), backend="reference")
    assert ((found / truth - 1).abs() <= 3e-7).all()


@pytest.mark.sweep(3)
@pytest.mark.parametrize("offset", [-300.0, -22.5, 0.7, 37.3, 60.0])
@pytest.mark.parametrize("distance", [4.2e-4, 0.042, 0.42, 3.0])
def test_a_constant_between_the_sides_costs_no_digits(offset, distance):
    """Differences of logits about as large as the constant are not rounded to it."""
    p, q = logits(3, 20_000, distance, seed=6)
    p, q = p.float(), (q + offset).float()
    for name in ("kl", "jeffreys", "js"):
        found = FUNCTIONS[name](p, q, None, backend="native").double()
        truth = FUNCTIONS[name](p.double(), q.double(), None, backend="reference")
        assert ((found / truth - 1).abs() <= rounded(p, p)).all(), name


@pytest.mark.parametrize("beta", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("distance", [7.0, 20.0, 60.0])
def test_jensen_shannon_of_far_pairs(beta, distance):
    p, q = (x.float() for x in logits(4, 20_000, distance, seed=7))
    found = tokens.js(p, q, beta=beta, backend="native").double()
    truth = tokens.js(p.double(), q.double(), beta=beta, backend="reference")
    assert ((found / truth - 1).abs() <= rounded(p, p)).all()


def test_one_of_the_sides_has_few_tokens_and_the_mask_leaves_rows_out():
    for kind in ("all but 100, p only", "all but 100, q only", "scattered apart", "first block"):
        p, q = (x.float() for x in banned(kind, *logits(6, 20_000)))
        p[2], keep = math.nan, torch.tensor([True, True, False, True, False, True])
        found = tokens.kl(p, q, mask=keep, backend="native").double()
        truth = tokens.kl(p.double(), q.double(), mask=keep, backend="reference")
        assert torch.equal(found.isinf(), truth.isinf())
        finite = truth.isfinite()
        assert ((found - truth)[finite].abs() <= 3e-7 * truth[finite]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e4, 6e4, 1e7, 1e11, 1e30])
def test_huge_logits_and_a_single_token(dtype, size):
    """One token has all of the mass: 0, as the reference, or NaN where float32 cannot tell."""
    size = min(size, torch.finfo(dtype).max)
    p = torch.tensor([[size, 0.0, -size], [size / 2, size, 1.0]], dtype=dtype)
    q = torch.tensor([[size, 1.0, -size], [1.0, size, size / 4]], dtype=dtype)
    for function in (tokens.kl, tokens.js, tokens.jeffreys):
        for a, b in ((p, q), (p[:, :1], q[:, :1])):
            found = function(a, b, backend="native", nan="pass").double()
            assert (found.isnan() if size > 1e10 else found.abs() < 1e-6).all()


@pytest.mark.sweep(7)
@pytest.mark.parametrize("backend", ["native", "chunked"])
@pytest.mark.parametrize("name", ["kl", "js", "jeffreys", "cross_entropy", "entropy"])
@pytest.mark.parametrize("size", [1e4, 1e6, 1e9])
@pytest.mark.parametrize("vocab", [3, 200])
def test_large_logits_as_the_reference_has_them(backend, name, size, vocab):
    """Errors in float32 ulps of log-ratios, and in float64 ulps of the logits."""
    normal = torch.Generator().manual_seed(vocab)
    a, b = torch.randn(2, 6, vocab, generator=normal)
    function = getattr(tokens, name)
    for p, q in ((size * a, size * b), (3 * a + size, 3 * b + size), (3 * a + size, 3 * b - size)):
        both = []
        for change, by in ((torch.Tensor.double, "reference"), (torch.clone, backend)):
            sides = [change(x).requires_grad_() for x in (p, q)]
            given = sides[:1] if name == "entropy" else sides
            value = function(*given, backend=by)
            slopes = torch.autograd.grad(value.sum(), given)
            both.append([x.detach().double() for x in (value, *slopes)])
        scale = 1 + both[0][0].abs()[:, None]  # of log-ratios, which gradients are products of
        for truth, found in zip(*both, strict=True):
            off = (found - truth).view(6, -1).abs()
            assert (off <= 4e-7 * scale + 4 * torch.finfo(torch.float64).eps * size).all()


@pytest.mark.sweep(4)
@pytest.mark.parametrize("backend", ["native", "chunked"])
@pytest.mark.parametrize("vocab", [5, 200, 3000])
@pytest.mark.parametrize("ban", [-1e2, -1e4, -1e6, -1e9])
def test_a_token_that_one_side_bans_by_a_finite_logit(backend, vocab, ban):
    """KL is huge, and the gradient to the side with the ban, q − p, is as precise as ever.

    Beyond 8 nats log-normalisers are found by themselves; up to there 1e-6 of KL is their error.
    """
    p, q = (x.float() for x in logits(100 if vocab < 3000 else 10, vocab, 1.0, spread=1.0))
    places = torch.randint(vocab, (len(p), 1), generator=torch.Generator().manual_seed(1))
    q.scatter_(1, places, ban)
    for name in ("kl", "jeffreys", "cross_entropy"):
        truth, found = (
            [x.requires_grad_() for x in (p.to(dtype, copy=True), q.to(dtype, copy=True))]
            for dtype in (torch.float64, torch.float32)
        )
        function = getattr(tokens, name)
        value, exact = function(*found, backend=backend), function(*truth, backend="reference")
        torch.testing.assert_close(value.double(), exact, rtol=2e-6, atol=0)
        (value.sum() + exact.sum()).backward()
        for mine, theirs in zip(found, truth, strict=True):
            off = (mine.grad - theirs.grad).norm(dim=-1) / theirs.grad.norm(dim=-1)
            assert float(off.max()) < 1e-6 * (1 + 8)
    lowest = q.scatter(1, places, torch.finfo(torch.float32).min)
    assert bool(tokens.compare(p, lowest, backend=backend).kl.isfinite().all())


@pytest.mark.parametrize("distance", [1e-3, 0.1, 2.0])
@pytest.mark.parametrize("vocab", [2, 5, 128])
def test_kl_of_few_tokens_is_exact_to_half_an_ulp(vocab, distance):
    p, q = logits(500, vocab, distance)
    p, q = p.float(), q.float()
    found = tokens.kl(p, q, backend="native").double()
    exact = tokens.kl(p.double(), q.double(), backend="reference")
    assert ((found - exact).abs() <= 6.1e-8 * exact + 1e-15).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_without_a_distribution(dtype, bad):
    good, row = torch.zeros(1, 3, dtype=dtype), torch.tensor([[0.0, bad, 1.0]], dtype=dtype)
    for function in (tokens.kl, tokens.js, tokens.jeffreys):
        for sides in ((row, good), (good, row), (good - INF, good)):
            assert function(*sides, backend="native", nan="pass").isnan().all()


@pytest.mark.parametrize("shape", [(3,), (2, 3), ()])
def test_the_short_way_of_small_calls_gives_the_same_gradients(shape):
    p, q = (x.float() for x in banned("scattered, q only", *logits(6, 300)))
    p, q = (x[: math.prod(shape)].reshape(*shape, 300) for x in (p, q))
    short = with_gradients("kl", p, q, None, backend="native")
    general = with_gradients("kl", p, q, None, backend="native", mask=torch.tensor(True))
    for mine, true in zip(short, general, strict=True):
        assert torch.equal(mine, true)


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [(False, True), (True, True)])
def test_gradients_beyond_the_caches_are_those_of_each_row_alone(wanted):
    """What is 16 MiB and more is written past the caches, from wherever its rows begin."""
    for vocab in (65_536 + 512, 65_536 + 7):
        p = torch.linspace(-3, 3, 64 * vocab).sin_().view(64, vocab) * 4
        q = p.flip(0).contiguous()
        p[3, 5] = q[3, 5] = p[4, -9] = -INF
        rows = [0, 3, 4, 63]
        found = []
        for some in (slice(None), rows):
            a, b = (
                x[some].clone().requires_grad_(want) for x, want in zip((p, q), wanted, strict=True)
            )
            tokens.kl(a, b, backend="native").sum().backward()
            found.append([x.grad for x in (a, b) if x.grad is not None])
        for whole, few in zip(*found, strict=True):
            assert torch.equal(whole[rows], few)


def test_the_largest_logit_may_come_late_and_far_above():
    """Anchors taken from the first block have to move: by less, and by more, than float32 holds.

    To `rounded`; and differences of logits have the rounding of float32, 2^-24 of the larger.
    """
    for rise in (5.0, 60.0, 300.0, 2000.0):
        for sides in ((1, 0), (0, 1), (1, 1)):
            p, q = (x.float() for x in logits(2, 9000, 0.5))
            p[:, 6000] += rise * sides[0]
            q[:, 6000] += rise * sides[1]
            q[:, :2048] -= 30.0  # so is the guess of the normalisers' difference
            found = tokens.compare(p, q, backend="native")
            truth = tokens.compare(p.double(), q.double(), backend="reference")
            for name in ("kl", "reverse_kl", "p_entropy", "q_entropy"):
                mine, true = getattr(found, name).double(), getattr(truth, name)
                share, least = (
                    (3e-7, 1e-12) if name == "kl" else (min(rounded(p, q), 2.0**-17), 1.0)
                )
                limit = share * true.clamp(min=least) + 2.0**-24 * rise * (true > 1e-9)
                assert ((mine - true).abs() <= limit).all()


def test_masses_at_the_end_of_the_range_are_not_lost():
    """q where p is e^-105, a hundred thousand times: its mass must count."""
    p, q = torch.full((1, 100_000), -105.0), torch.full((1, 100_000), -14.0)
    p[0, 0] = q[0, 0] = 0.0
    found, truth = (
        tokens.kl(x.to(d), y.to(d), backend=b)
        for x, y, d, b in ((p, q, torch.float32, "native"), (p, q, torch.float64, "reference"))
    )
    # equal terms are all rounded alike: three ulps of each, not their mean
    assert abs(found.double() / truth - 1) < 6e-7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rounding_floors_are_those_of_the_plain_form(dtype, temperature):
    x = logits(5, 3001)[0].to(dtype)
    x[1, 5], x[2, :40] = -INF, 0.0
    sums = native.sums(x, None, None, Task(("log_prob",), temperature))
    found = native.rounding(x, sums[[Sum.P_MAX, Sum.P_LOG]], temperature)
    plain = tokens.rounding_floor(x, temperature=temperature).double()
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["portable", "avx2", "avx512"])
def test_every_level_of_instructions(level):
    flags = {"portable": set(), "avx2": {"avx2", "fma", "f16c"}, "avx512": {"avx512f", "avx512dq"}}
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or not flags[level] <= set(cpuinfo.read_text().split()):
        pytest.skip(f"this processor has no {level}")
    command = [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-p", "no:cacheprovider"]
    environment = {**os.environ, "KULLBACK_NATIVE": level}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
