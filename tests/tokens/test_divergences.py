"""Exact divergences from logits: values and gradients against float64, edges, laws, errors."""

import inspect
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kullback import exact, tokens
from kullback.tokens import limits
from kullback.tokens.backends.interface import Task

INF = math.inf
EPS = torch.finfo(torch.float32).eps
NATIVE = tokens.usable(torch.zeros(1, 2), torch.zeros(1, 2))["native"]
native = pytest.param("native", marks=pytest.mark.skipif(bool(NATIVE), reason=f"native: {NATIVE}"))
FAST = ["chunked", native]

# every function as one of (p, q, ids), so that all are held to the same rules
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
every_function = pytest.mark.parametrize("name", FUNCTIONS)
every_backend = pytest.mark.parametrize("backend", FAST)


@pytest.fixture(autouse=True)
def one_thread():
    """Most tensors here are too small for two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def logits(*shape, distance=0.5, seed=0, spread=3.0, dtype=torch.float32):
    """Two peaked rows of logits each, `distance` apart."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(*shape, generator=generator, dtype=torch.float64) * spread
    q = p + distance * torch.randn(*shape, generator=generator, dtype=torch.float64)
    return p.to(dtype), q.to(dtype)


def with_gradients(name, p, q, ids, weights=None, **more):
    """The value, and the gradients of the weighted sum of its finite part."""
    p, q = p.detach().clone().requires_grad_(), q.detach().clone().requires_grad_()
    value = FUNCTIONS[name](p, q, ids, **more)
    weights = 1.0 + torch.arange(value.numel(), dtype=torch.float64).view(value.shape) / 7
    (value.double() * weights).where(value.isfinite(), value.detach() * 0).nansum().backward()
    return value.detach(), *(torch.zeros_like(x) if x.grad is None else x.grad for x in (p, q))


def held_to_reference(name, p, q, ids, backend, tolerance, **more):
    """Values within `tolerance` of the float64 truth, gradients of it times the largest mass."""
    found = with_gradients(name, p, q, ids, backend=backend, **more)
    truth = with_gradients(name, p.double(), q.double(), ids, backend="reference", **more)
    wide = name == "compare" or p.dtype == torch.float64
    assert found[0].dtype == (torch.float64 if wide else torch.float32)
    finite = truth[0].isfinite()
    torch.testing.assert_close(found[0].double()[~finite], truth[0][~finite], equal_nan=True)
    # sums of one sign are relatively accurate; logarithms only as their largest terms, of order 1
    least = 1e-2 if name in ("kl", "js", "jeffreys") else 1.0
    scale = truth[0][finite].abs().clamp(min=least)
    assert ((found[0].double() - truth[0])[finite].abs() <= tolerance * scale).all()
    for mine, true, side in zip(found[1:], truth[1:], (p, q), strict=True):
        assert mine.dtype == side.dtype and mine.shape == side.shape
        # a slope is p (log-ratio - value): both of order ten here, weights too
        rounding = torch.finfo(side.dtype).eps * true.abs()
        assert ((mine.double() - true).abs() <= 100 * tolerance + rounding).all()


# --- the reference against the tables of `exact`, and enumeration --------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
def test_the_reference_is_the_sum(temperature):
    p, q = logits(5, 7, dtype=torch.float64)
    a, b = (p / temperature).softmax(-1), (q / temperature).softmax(-1)
    m = 0.3 * a + 0.7 * b
    options = {"temperature": temperature, "backend": "reference"}
    truth = {
        "kl": (a * (a / b).log()).sum(-1),
        "jeffreys": ((a - b) * (a / b).log()).sum(-1),
        "js": 0.3 * (a * (a / m).log()).sum(-1) + 0.7 * (b * (b / m).log()).sum(-1),
        "entropy": -(a * a.log()).sum(-1),
        "cross_entropy": -(a * b.log()).sum(-1),
        "log_prob": a.log()[:, 2],
    }
    for name, value in truth.items():
        found = FUNCTIONS[name](p, q, torch.tensor(2), **options)
        torch.testing.assert_close(found, value, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", ["kl", "jeffreys", "js", "entropy"])
def test_the_reference_has_the_rules_of_the_tables(name):
    p, q = logits(6, 5, dtype=torch.float64)
    p[0, 0] = q[0, 1] = p[1, 2] = q[2, 2] = p[3, 3] = q[3, 3] = -INF
    p[4, :3] = q[4, 3:] = -INF  # disjoint
    p, q = p.requires_grad_(), q.requires_grad_()
    sides = (p,) if name == "entropy" else (p, q)
    more = {"weight": 0.3} if name == "js" else {}
    found = FUNCTIONS[name](p, q, None, backend="reference")
    table = getattr(exact, name)(*sides, form="logits", **more)
    torch.testing.assert_close(found, table, rtol=1e-12, atol=1e-14)
    for row in range(6):
        if name == "jeffreys" and found[row].isinf():
            continue  # each of its halves keeps its finite terms; the table's sum keeps its own
        mine = torch.autograd.grad(found[row], sides, retain_graph=True)
        true = torch.autograd.grad(table[row], sides, retain_graph=True)
        torch.testing.assert_close(mine, true, rtol=1e-12, atol=1e-14)


@pytest.mark.sweep(6)
@every_function
@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_gradients_are_those_of_finite_differences(name, backend):
    if name == "compare":
        pytest.skip("same_top has no gradient; its other values are tested one by one")
    p, q = (x.requires_grad_() for x in logits(3, 5, dtype=torch.float64))
    ids = torch.tensor([0, 4, 2])

    def function(p, q):
        return FUNCTIONS[name](p, q, ids, temperature=0.8, backend=backend)

    assert torch.autograd.gradcheck(function, (p, q))


def test_without_a_temperature_it_is_one():
    for name in tokens.__all__:
        found = getattr(tokens, name)
        if inspect.isfunction(found) and "temperature" in (
            has := inspect.signature(found).parameters
        ):
            assert has["temperature"].default == 1.0, name
    p, q = logits(3, 5, dtype=torch.float64)
    for name, function in FUNCTIONS.items():
        one = function(p, q, torch.tensor(2), temperature=1.0)
        assert torch.equal(function(p, q, torch.tensor(2)), one), name


def test_the_reference_differentiates_twice():
    p, q = (x.requires_grad_() for x in logits(2, 4, dtype=torch.float64))
    assert torch.autograd.gradgradcheck(lambda p, q: tokens.kl(p, q, backend="reference"), (p, q))


def test_other_backends_say_that_they_do_not():
    p, q = (x.requires_grad_() for x in logits(2, 4, dtype=torch.float64))
    (slope,) = torch.autograd.grad(tokens.kl(p, q).sum(), p, create_graph=True)
    with pytest.raises(ValueError, match="backend: expected 'reference'"):
        slope.sum().backward()


# --- the chunked and the native backend against the reference ------------------------------------


@every_function
@every_backend
def test_tokens_of_nearly_no_mass_on_one_side_count(name, backend):
    """Log-ratios beyond ±20, where one side's mass is 2e-9 of the other's and not yet rounding."""
    p = torch.tensor([[0.0, -21.0, 1.0, -20.5], [0.0, -1.0, 1.0, 2.0]], dtype=torch.float64)
    q = torch.tensor([[0.0, 0.5, 1.0, 0.0], [0.0, -22.0, 1.0, -19.0]], dtype=torch.float64)
    held_to_reference(name, p, q, torch.tensor([1, 3]), backend, 1e-13)


@pytest.mark.sweep(4)
@every_function
@pytest.mark.parametrize("vocab", [1, 2, 3, 15, 16, 17, 1000, 2049])
def test_chunked_in_float64_is_the_reference(name, vocab):
    p, q = logits(5, vocab, dtype=torch.float64)
    held_to_reference(name, p, q, torch.arange(5) % vocab, "chunked", 1e-13, temperature=1.3)


@pytest.mark.sweep(8)
@every_function
@every_backend
@pytest.mark.parametrize("vocab", [1, 2, 3, 15, 16, 17, 1000, 2048, 2049, 5003])
def test_float32(name, backend, vocab):
    p, q = logits(5, vocab)
    held_to_reference(name, p, q, torch.arange(5) % vocab, backend, 64 * EPS)


@pytest.mark.sweep(4)
@every_function
@every_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(name, backend, dtype):
    p, q = logits(4, 1003, dtype=dtype)
    held_to_reference(name, p, q, torch.arange(4), backend, 64 * EPS, temperature=0.9)


@every_backend
def test_dtypes_can_differ(backend):
    p, q = logits(4, 33)
    found = tokens.kl(p, q.bfloat16())
    truth = tokens.kl(p.double(), q.bfloat16().double(), backend="reference")
    torch.testing.assert_close(found.double(), truth, rtol=64 * EPS, atol=0)


@pytest.mark.sweep(5)
@pytest.mark.parametrize("name", ["kl", "js", "compare"])
@every_backend
def test_the_largest_vocabulary(name, backend):
    p, q = logits(1, 262_144, distance=0.1)
    held_to_reference(name, p, q, torch.tensor([262_143]), backend, 64 * EPS)


@every_function
@every_backend
def test_missing_tokens(name, backend):
    p, q = logits(8, 2100)
    p[0, :9] = q[0, 5:20] = p[1, 2] = q[2, 2] = p[3, 3] = q[3, 3] = -INF
    p[4, :1000] = q[4, 1000:] = -INF  # disjoint
    p[5, 1:] = -INF  # one token is certain
    q[6, :2048] = p[6, :2048] = -INF  # a whole block without tokens
    held_to_reference(name, p, q, torch.arange(8), backend, 64 * EPS)


@every_function
@every_backend
def test_differences_beyond_the_range_of_exp(name, backend):
    p, q = logits(4, 40)
    q[0, 3] += 300  # where p has no mass that a float can hold
    p[1, 3] += 300
    p[2, 5], q[2, 6] = -1e4, -65504.0  # masks of finite numbers
    rounding = 300 * EPS  # of a difference of logits of that size
    held_to_reference(name, p, q, torch.arange(4), backend, rounding)


@every_backend
def test_a_mask_of_the_least_float_and_a_low_temperature(backend):
    p, q = logits(3, 40)
    least = torch.finfo(torch.float32).min
    p[0, 3] = q[0, 3] = least
    p[1, 3] = least
    for name in ("kl", "js", "entropy"):
        found = with_gradients(name, p, q, None, temperature=0.5, backend=backend)
        banned = [x.masked_fill(x == least, -INF) for x in (p, q)]
        truth = with_gradients(name, *banned, None, temperature=0.5, backend="reference")
        for mine, true in zip(found, truth, strict=True):
            torch.testing.assert_close(mine, true, rtol=1e-4, atol=1e-6)


# --- hypothesis: shapes, masks, infinities -------------------------------------------------------


@st.composite
def cases(draw):
    rows, vocab = draw(st.integers(0, 4)), draw(st.integers(1, 9))
    number = st.one_of(st.floats(-30, 30, width=32), st.sampled_from([-INF, 0.0, 1e-3]))
    pair = []
    for _ in range(2):
        x = [draw(st.lists(number, min_size=vocab, max_size=vocab)) for _ in range(rows)]
        x = torch.tensor(x, dtype=torch.float32).view(rows, vocab)
        x[:, draw(st.integers(0, vocab - 1))] = draw(st.floats(-5, 5, width=32))
        pair.append(x)
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)), dtype=bool)
    ids = torch.tensor([draw(st.integers(0, vocab - 1)) for _ in range(rows)], dtype=torch.int64)
    return *pair, mask, ids, draw(st.sampled_from([0.5, 1.0, 2.0]))


@pytest.mark.slow
@pytest.mark.sweep(2)
@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(case=cases())
def test_any_small_case(backend, case):
    p, q, mask, ids, temperature = case
    for name in FUNCTIONS:
        more = {"temperature": temperature, "mask": mask}
        held_to_reference(name, p, q, ids, backend, 256 * EPS, **more)
    p_kl = tokens.kl(p, q, backend=backend)
    assert (p_kl >= 0).all() and (tokens.kl(p, p, backend=backend) == 0).all()
    js = tokens.js(p, q, beta=0.3, backend=backend)
    most = -(0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    assert ((js >= 0) & (js <= most * (1 + 64 * EPS))).all()


# --- never negative, and accurate where the two are close ----------------------------------------


@pytest.mark.sweep(3)
@every_backend
@pytest.mark.parametrize("shift", [0.0, 40.0])
@pytest.mark.parametrize("distance", [1e-3, 1.4e-3, 1e-2, 0.3, 3.0])
def test_relative_error_from_a_millionth_up(backend, distance, shift):
    p, q = logits(8, 20_000, distance=distance)
    q = q + shift
    found = tokens.kl(p, q, backend=backend).double()
    truth = tokens.kl(p.double(), q.double(), backend="reference")
    assert distance > 2e-3 or truth.min() < 1e-6
    assert (((found - truth) / truth).abs() < 1e-3).all()


@pytest.mark.sweep(3)
@every_backend
@pytest.mark.parametrize("distance", [1e-3, 1e-2, 0.3, 3.0])
def test_relative_error_of_the_gradient(backend, distance):
    p, q = (x.requires_grad_() for x in logits(4, 20_000, distance=distance))
    a, b = (x.detach().double().requires_grad_() for x in (p, q))
    for found, truth in (
        (tokens.kl(p, q, backend=backend), tokens.kl(a, b, backend="reference")),
        (tokens.kl(q, p, backend=backend), tokens.kl(b, a, backend="reference")),
    ):
        mine = torch.autograd.grad(found.sum(), (p, q))
        true = torch.autograd.grad(truth.sum(), (a, b))
        for one, other in zip(mine, true, strict=True):
            assert ((one - other).norm(dim=-1) / other.norm(dim=-1) < 1e-5).all()


@every_backend
def test_never_negative(backend):
    for seed, distance in enumerate((1e-8, 1e-7, 1e-6, 1e-5, 1e-4)):
        p, q = logits(50, 300, distance=distance, seed=seed)
        found = tokens.compare(p, q, backend=backend)
        assert (found.kl >= 0).all() and (found.reverse_kl >= 0).all()
        assert (tokens.js(p, q, backend=backend) >= 0).all()


@every_backend
def test_equal_logits_are_exactly_zero_apart_and_have_no_slope(backend):
    p, _ = logits(3, 70)
    for name in ("kl", "jeffreys", "js"):
        for found in with_gradients(name, p, p, None, backend=backend):
            assert (found == 0).all()


# --- the warning about half precision ------------------------------------------------------------


def test_half_precision_that_hides_the_difference_warns():
    p, q = logits(8, 2000, distance=0.01, spread=4)
    true = tokens.kl(p, q).mean()
    floor = (tokens.rounding_floor(p.bfloat16()) + tokens.rounding_floor(q.bfloat16())).mean()
    assert floor > true
    with pytest.warns(tokens.PrecisionWarning, match="bfloat16: rounding alone") as seen:
        tokens.kl(p.bfloat16(), q.bfloat16())
    assert seen[0].filename == __file__


def test_it_warns_once_for_a_place():
    p, q = (x.bfloat16() for x in logits(8, 2000, distance=0.01, spread=4))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for scale in (1.0, 1.1):
            tokens.kl(p * scale, q * scale)
    assert len(seen) == 1


@pytest.mark.parametrize("change", ["float32", "far apart", "equal", "pass"])
def test_otherwise_it_does_not_warn(change):
    p, q = logits(8, 2000, distance=1.0 if change == "far apart" else 0.01)
    q = p if change == "equal" else q
    if change != "float32":
        p, q = p.bfloat16(), q.bfloat16()
    tokens.kl(p, q, nan="pass" if change == "pass" else "refuse")  # warnings are errors here


def test_the_floor_is_what_rounding_does():
    p, _ = logits(400, 50, spread=2)
    p = p + 8
    rounded = tokens.kl(p.double(), p.bfloat16().double())
    expected = tokens.rounding_floor(p.bfloat16()).double()
    ratio = rounded / expected.mean()
    error = ratio.std() / len(p) ** 0.5
    assert abs(ratio.mean() - 1) < 4.5 * error + 0.1  # half the variance is KL's leading term


# --- shapes, strides, masks ----------------------------------------------------------------------


@every_backend
def test_any_batch_any_strides(backend):
    p, q = logits(3, 6, 5, 70)
    views = {
        "shifted": lambda x: x[:, :-1],
        "every other": lambda x: x[::2, :, 1:4:2],
        "permuted": lambda x: x.permute(2, 0, 1, 3),
        "vocabulary first": lambda x: x.permute(3, 1, 2, 0),
        "part of a vocabulary": lambda x: x[..., 3:50],
        "one row": lambda x: x[0, 0, 0],
    }
    for view in views.values():
        a, b = view(p), view(q)
        found = with_gradients("kl", a, b, None, backend=backend)
        truth = with_gradients("kl", a.contiguous(), b.contiguous(), None, backend=backend)
        for mine, true in zip(found, truth, strict=True):
            torch.testing.assert_close(mine, true, rtol=16 * EPS, atol=EPS)


@every_backend
def test_gradients_through_views_land_where_they_belong(backend):
    p, q = logits(2, 4, 30)
    p.requires_grad_()
    tokens.kl(p[:, :-1], q[:, :-1], backend=backend).sum().backward()
    alone = p[:, :-1].detach().requires_grad_()
    tokens.kl(alone, q[:, :-1], backend=backend).sum().backward()
    assert torch.equal(p.grad[:, :-1], alone.grad) and (p.grad[:, -1] == 0).all()


@every_backend
def test_batches_broadcast(backend):
    p, q = logits(4, 3, 20)
    one = q[0, 0].clone().requires_grad_()
    found = tokens.kl(p, one, backend=backend)
    full = one.detach().expand(4, 3, 20).contiguous().requires_grad_()
    truth = tokens.kl(p, full, backend=backend)
    found.sum().backward()
    truth.sum().backward()
    assert torch.equal(found, truth)
    torch.testing.assert_close(one.grad, full.grad.sum((0, 1)))


@every_function
@every_backend
def test_what_the_mask_leaves_out_is_never_looked_at(name, backend):
    p, q = logits(6, 40)
    mask = torch.tensor([True, False, True, False, True, True])
    p[1], q[1], q[3] = math.nan, -INF, INF
    ids = torch.tensor([0, -100, 2, 999, 4, 5])
    value, by_p, by_q = with_gradients(name, p, q, ids, mask=mask, backend=backend)
    assert (value[..., ~mask] == 0).all()
    assert (by_p[~mask] == 0).all() and (by_q[~mask] == 0).all()
    held_to_reference(name, p[mask], q[mask], ids[mask], backend, 64 * EPS)
    torch.testing.assert_close(value[..., mask], FUNCTIONS[name](p[mask], q[mask], ids[mask]))


@every_function
@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5)])
def test_an_empty_batch(name, backend, shape):
    p = torch.zeros(shape)
    ids = torch.zeros(shape[:-1], dtype=torch.int64)
    value, by_p, by_q = with_gradients(name, p, p, ids, backend=backend)
    assert value.shape[-len(shape) + 1 :] == shape[:-1] and by_p.shape == by_q.shape == shape


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_one_side_alone_may_want_its_gradient(backend):
    p, q = logits(3, 50)
    both = with_gradients("kl", p, q, None, backend=backend)
    for side in (0, 1):
        pair = [p.clone(), q.clone()]
        pair[side].requires_grad_()
        value = tokens.kl(*pair, backend=backend)
        (value * (1 + torch.arange(3) / 7)).sum().backward()
        assert pair[1 - side].grad is None
        torch.testing.assert_close(pair[side].grad, both[1 + side])


def test_agreement_is_of_the_first_of_equals():
    p = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 0.0, 0.0]])
    q = torch.tensor([[5.0, 1.0, 2.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    for backend in ("reference", "chunked", "auto"):
        assert tokens.compare(p, q, backend=backend).same_top.tolist() == [True, True, False]


# --- rows without a distribution -----------------------------------------------------------------

BAD = {"all banned": [-INF, -INF, -INF], "NaN": [0.0, math.nan, 0.0], "+inf": [0.0, INF, 0.0]}
BAD["NaN among banned"] = [-INF, math.nan, -INF]


@pytest.mark.sweep(5)
@every_function
@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("kind", BAD)
def test_no_distribution_is_refused_or_passed(name, backend, kind):
    p, q = logits(4, 3)
    ids = torch.zeros(4, dtype=torch.int64)
    p[2] = torch.tensor(BAD[kind])
    with pytest.raises(ValueError, match=r"1 positions of 4 that are not, the first at \(2,\)"):
        FUNCTIONS[name](p, q, ids, backend=backend)
    p, q = p.requires_grad_(), q.requires_grad_()
    value = FUNCTIONS[name](p, q, ids, backend=backend, nan="pass")
    good = torch.tensor([True, True, False, True])
    if name == "compare":
        assert torch.equal(value[[0, 1, 3, 4, 5, 6]].isnan(), ~good.expand(6, 4))
        value = value[[0, 1, 3, 4, 5, 6]]
    assert torch.equal(value.isnan(), (~good).expand(value.shape))
    value.sum().backward()
    assert torch.equal(p.grad.isnan().any(-1), ~good)
    truth = with_gradients(name, p[good], q[good], ids[good], backend="reference")
    finite = FUNCTIONS[name](p, q, ids, backend=backend, nan="pass")[..., good]
    torch.testing.assert_close(finite, truth[0])


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_a_bad_q_is_found_too(backend):
    p, q = logits(2, 3, 4)
    q[1, 2, 0] = math.nan
    with pytest.raises(ValueError, match=r"p_logits and q_logits: .* at \(1, 2\)\. Try: mask="):
        tokens.kl(p, q, backend=backend)


# --- vocabularies, arguments, backends -----------------------------------------------------------


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_a_padded_vocabulary_is_cropped_when_asked(backend):
    p, q = logits(3, 60)
    small = p[:, :50].clone().requires_grad_()
    q = q.requires_grad_()
    found = tokens.kl(small, q, align="crop", backend=backend)
    torch.testing.assert_close(found, tokens.kl(small, q[:, :50], backend=backend))
    found.sum().backward()
    assert (q.grad[:, 50:] == 0).all() and small.grad.shape == (3, 50)
    with pytest.raises(ValueError, match=r"one vocabulary size; got 50 and 60\. Try: align='crop'"):
        tokens.kl(small, q)


P = torch.zeros(2, 3)
REFUSED = {
    "p_logits: expected Tensor": lambda: tokens.kl([0.0], P),
    "q_logits: expected a float tensor; got int64": lambda: tokens.kl(P, P.long()),
    "logits: expected a tensor .* at least one token": lambda: tokens.entropy(torch.zeros(2, 0)),
    "batches that broadcast; got .2. and .4.": lambda: tokens.kl(P, torch.zeros(4, 3)),
    "temperature: expected a positive": lambda: tokens.kl(P, P, temperature=0),
    "temperature: expected int or float; got str": lambda: tokens.kl(P, P, temperature="1"),
    "beta: expected a number strictly between": lambda: tokens.js(P, P, beta=1.0),
    "nan: expected 'refuse' or 'pass'": lambda: tokens.kl(P, P, nan="drop"),
    "align: expected None or 'crop'": lambda: tokens.kl(P, P, align="pad"),
    "backend: expected 'auto' or 'reference'": lambda: tokens.kl(P, P, backend="cuda"),
    "backend: 'triton' cannot be used here": lambda: tokens.kl(P, P, backend="triton"),
    "mask: expected a bool tensor; got float32": lambda: tokens.kl(P, P, mask=torch.ones(2)),
    "mask: expected a tensor that broadcasts": lambda: tokens.kl(
        P, P, mask=torch.ones(3, dtype=torch.bool)
    ),
    "ids: expected Tensor; got int": lambda: tokens.log_prob(P, 1),
    "ids: expected an integer tensor": lambda: tokens.log_prob(P, torch.zeros(2)),
    "ids: expected token ids from 0 to 2; got -100.*mask=": lambda: tokens.log_prob(
        P, torch.tensor([0, -100])
    ),
    "ids: expected token ids from 0 to 2; got 3": lambda: tokens.log_prob(P, torch.tensor([0, 3])),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused_says_why(message):
    with pytest.raises((ValueError, TypeError), match=message):
        REFUSED[message]()


@every_backend
def test_many_threads_give_what_one_gives(backend):
    p, q = logits(37, 3001)
    threads = torch.get_num_threads()
    found = []
    for number in (1, 3):
        torch.set_num_threads(number)
        found.append(with_gradients("compare", p, q, torch.arange(37), backend=backend))
    torch.set_num_threads(threads)
    for one, many in zip(*found, strict=True):
        torch.testing.assert_close(one, many, rtol=16 * EPS, atol=EPS)


def test_auto_takes_the_native_loop_where_it_pays():
    from kullback.tokens.backends.choose import choose

    big, small = torch.zeros(4, 1 << 16), torch.zeros(4, 16)
    task = Task(("kl",))
    names = [choose("auto", x, x, task).__name__.rpartition(".")[2] for x in (big, small)]
    assert names == ["chunked" if NATIVE else "native"] * 2  # compiled, it takes small ones too
    assert choose("auto", big.to("meta"), big.to("meta"), task).__name__.endswith("chunked")


# --- KL without a compiler -----------------------------------------------------------------------


@pytest.mark.parametrize("distance", [1e-6, 1e-4, 1e-2, 0.5, 6.0])
@pytest.mark.parametrize("vocab", [100, 1003, 70_001])
def test_without_a_compiler_kl_is_rounded_once(vocab, distance):
    """From KL 1e-13 to 10, over rows that are cut: off by float32's half ulp of the value, 6e-8."""
    p, q = logits(2, vocab, distance=distance, seed=3)
    truth = tokens.kl(p.double(), q.double(), backend="reference")
    for more in (0.0, 500.0):  # a row's logits all larger, or its side's
        a, b = (p + more).float(), (q + more).float()
        if more:
            truth = tokens.kl(a.double(), b.double(), backend="reference")
        found = tokens.kl(a, b, backend="chunked").double()
        assert ((found - truth).abs() <= 1e-7 * truth).all()


@pytest.mark.parametrize("temperature", [0.7, 30.0])
def test_without_a_compiler_rows_of_all_kinds_stand_together(temperature):
    p, q = logits(9, 40_000, seed=4)  # more than one block
    q[1] = p[1]
    q[2] = p[2] + 7.0  # another normaliser
    p[3, -9:] = q[3, -9:] = -INF  # padding
    p[4, 5] = -INF  # q alone has it
    q[5, 5] = -INF  # p alone has it
    p[6, ::2] = q[6, 1::2] = -INF
    p[7] *= 400  # beyond the range of exponentials
    p[8, 30_000:] = q[8, 30_000:] = -INF  # a block without tokens
    found = with_gradients("kl", p, q, None, temperature=temperature, backend="chunked")
    wide = p.double(), q.double()
    truth = with_gradients("kl", *wide, None, temperature=temperature, backend="reference")
    assert found[0].isinf().tolist() == [False] * 5 + [True, True, False, False]
    for mine, true in zip(found, truth, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=2e-5, atol=1e-9)
    good = found[0].isfinite()
    assert (found[0].double() - truth[0])[good].abs().max() <= 2**-24 * truth[0][good].max()


@every_backend
@pytest.mark.parametrize("bad", [INF, math.nan])
def test_a_row_without_a_distribution_is_never_infinite(bad, backend):
    """NaN or +inf beside a token that the other side lacks: refused, or NaN."""
    rows = torch.tensor([[0.5, bad], [bad, 0.5], [0.5, 0.5]])
    other = torch.tensor([[-0.5, -INF], [-0.5, -INF], [-0.5, -INF]])
    for p, q in ((rows, other), (other, rows)):
        with pytest.raises(ValueError, match="2 positions of 3 that are not"):
            tokens.kl(p, q, backend=backend)
        found = tokens.compare(p, q, backend=backend, nan="pass")
        for value in (tokens.kl(p, q, backend=backend, nan="pass"), found.kl, found.reverse_kl):
            assert value.isnan().tolist() == [True, True, False]


@every_backend
def test_another_default_device_changes_nothing(backend):
    """The default device would else be that of scratch memory, to which a CPU loop then writes."""
    p, q = logits(3, 40)
    half = p.bfloat16(), q.bfloat16()
    truth = with_gradients("kl", p, q, None, backend=backend)
    before = torch.get_default_device()
    torch.set_default_device("meta")
    try:
        x = q.detach().requires_grad_()
        value = tokens.kl(p, x, backend=backend)
        (slope,) = torch.autograd.grad(value, x, truth[0])
        again = tokens.js(p, q, backend=backend), tokens.kl(*half, backend=backend)
        floor = tokens.rounding_floor(*half)
    finally:
        torch.set_default_device(before)
    assert value.equal(truth[0]) and slope.isfinite().all()
    assert all(bool(x.isfinite().all()) for x in (*again, floor))


@pytest.mark.parametrize("vocab", [3, 70_001])
@pytest.mark.parametrize("offset", [0.0, 1000.0, 3e4])
def test_without_a_compiler_small_kl_of_tokens_that_p_lacks(vocab, offset):
    """KL is -log of the mass that q has where p has any: 2e-3 to 5e-12, where q has little else."""
    depths = torch.tensor([0.0, -5.0, -12.0, -18.0, -25.0])
    p, q = torch.zeros(5, vocab), torch.zeros(5, vocab)
    q[:, 1] = depths - math.log(vocab)
    q += offset
    p[:, 1] = -INF
    truth = with_gradients("kl", p.double(), q.double(), None, backend="reference")
    found = with_gradients("kl", p, q, None, backend="chunked")
    assert ((found[0].double() - truth[0]).abs() <= EPS * truth[0]).all()
    rounding = 8 * 2**-52 * (1 + offset)  # of float64's exponentials and their sums
    for mine, true in zip(found[1:], truth[1:], strict=True):
        assert ((mine.double() - true).abs() <= EPS * true.abs() + rounding).all()


def test_without_a_compiler_a_row_is_read_in_blocks():
    """Scratch memory does not grow with the vocabulary."""
    sizes, empty = [], torch.empty

    def watched(*shape, **more):
        sizes.append(math.prod(shape[0]) if isinstance(shape[0], tuple) else math.prod(shape))
        return empty(*shape, **more)

    p, q = logits(2, 300_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", watched)
        tokens.kl(p, q, backend="chunked")
    assert max(sizes) <= 3 * limits.FLOAT64_BLOCK
