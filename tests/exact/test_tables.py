"""Tables: every number against float64 sums and other libraries, every edge with its gradient."""

import itertools
import math

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from kullback.exact import limits, tables

INF = math.inf
PAIRED = {
    "cross_entropy": tables.cross_entropy,
    "kl": tables.kl,
    "jeffreys": tables.jeffreys,
    "js": tables.js,
    "js_third": lambda p, q, **k: tables.js(p, q, weight=1 / 3, **k),
    "renyi_0": lambda p, q, **k: tables.renyi(p, q, alpha=0, **k),
    "renyi_half": lambda p, q, **k: tables.renyi(p, q, alpha=0.5, **k),
    "renyi_2": lambda p, q, **k: tables.renyi(p, q, alpha=2, **k),
    "renyi_inf": lambda p, q, **k: tables.renyi(p, q, alpha=INF, **k),
    "tsallis_third": lambda p, q, **k: tables.tsallis(p, q, alpha=1 / 3, **k),
    "tsallis_3": lambda p, q, **k: tables.tsallis(p, q, alpha=3, **k),
    "chi2": tables.chi2,
    "total_variation": tables.total_variation,
    "hellinger": tables.hellinger,
}


def kl_sum(p, q):
    return (p * (p / q).log()).sum(-1)


def js_sum(p, q, w):
    m = w * p + (1 - w) * q
    return w * kl_sum(p, m) + (1 - w) * kl_sum(q, m)


TEXTBOOK = {  # the formula as books print it, for tables without zeros
    "cross_entropy": lambda p, q: -(p * q.log()).sum(-1),
    "kl": kl_sum,
    "jeffreys": lambda p, q: kl_sum(p, q) + kl_sum(q, p),
    "js": lambda p, q: js_sum(p, q, 0.5),
    "js_third": lambda p, q: js_sum(p, q, 1 / 3),
    "renyi_0": lambda p, q: 0 * (p + q).sum(-1),
    "renyi_half": lambda p, q: -2 * (p * q).sqrt().sum(-1).log(),
    "renyi_2": lambda p, q: (p**2 / q).sum(-1).log(),
    "renyi_inf": lambda p, q: (p / q).amax(-1).log(),
    "tsallis_third": lambda p, q: ((p ** (1 / 3) * q ** (2 / 3)).sum(-1) - 1) * -1.5,
    "tsallis_3": lambda p, q: ((p**3 / q**2).sum(-1) - 1) / 2,
    "chi2": lambda p, q: ((p - q) ** 2 / q).sum(-1),
    "total_variation": lambda p, q: (p - q).abs().sum(-1) / 2,
    "hellinger": lambda p, q: (0.5 * (p.sqrt() - q.sqrt()) ** 2).sum(-1).sqrt(),
}


def two_tables(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, *shape, generator=generator, dtype=torch.float64) * 2
    p, q = logits.log_softmax(-1)
    return p.to(dtype), q.to(dtype)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("form", ["probs", "log_probs", "logits"])
def test_the_textbook_formula_and_its_gradient(name, form):
    """Value and gradient along the simplex agree with autograd through the printed formula."""
    log_p, log_q = two_tables(3, 5, 7)
    truth = TEXTBOOK[name](log_p.exp(), log_q.exp())
    given = [log_p.exp(), log_q.exp()] if form == "probs" else [log_p + 0.0, log_q + 0.0]
    given = [t + 1.7 for t in given] if form == "logits" else given
    value = PAIRED[name](*given, form=form)
    torch.testing.assert_close(value, truth, rtol=1e-12, atol=1e-14)
    leaves = [log_p.clone().requires_grad_(), log_q.clone().requires_grad_()]
    ours = PAIRED[name](*leaves, form="logits")
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-14)
    theirs = TEXTBOOK[name](*(leaf.softmax(-1) for leaf in leaves))
    weights = torch.linspace(-1, 2, ours.numel(), dtype=torch.float64).reshape(ours.shape)
    gradients = [torch.autograd.grad((v * weights).sum(), leaves) for v in (ours, theirs)]
    for mine, printed in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, printed, rtol=1e-9, atol=1e-12)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", PAIRED)
def test_gradients_by_finite_differences(name):
    p, q = (t.exp().requires_grad_() for t in two_tables(4))
    call = lambda p, q: PAIRED[name](p, q, normalise=True)  # noqa: E731
    assert torch.autograd.gradcheck(call, (p, q))
    if name not in ("renyi_inf", "total_variation"):
        assert torch.autograd.gradgradcheck(call, (p, q))


@pytest.mark.sweep(6)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, on first jvp
@pytest.mark.parametrize("name", [n for n in PAIRED if n not in ("renyi_inf", "total_variation")])
def test_forward_mode_agrees_with_reverse_mode_also_where_entries_tie(name):
    p = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    q = torch.tensor([0.2, 0.4, 0.4], dtype=torch.float64, requires_grad=True)
    direction = torch.tensor([1.0, -0.3, 0.2], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(PAIRED[name](p, q), q)
    _, forward = torch.func.jvp(lambda q: PAIRED[name](p, q), (q.detach(),), (direction,))
    assert forward.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-12)


@pytest.mark.parametrize("name", ["kl", "jeffreys", "js", "chi2", "tsallis_3", "renyi_half"])
def test_the_curvature_at_equal_tables_is_the_fisher_information(name):
    """Hessians at p = q, logits: f''(1)·(diag p − p pᵀ), f'' from the f-divergence of each name."""
    curvature = {"kl": 1, "jeffreys": 2, "js": 0.25, "chi2": 2, "tsallis_3": 3, "renyi_half": 0.5}
    logits = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
    p = logits.softmax(-1)
    fisher = curvature[name] * (p.diag() - p[:, None] * p)
    for form in ("probs", "log_probs"):
        given = p if form == "probs" else p.log()

        def loss(logits, form=form, given=given):
            q = logits.softmax(-1) if form == "probs" else logits.log_softmax(-1)
            return PAIRED[name](given, q, form=form)

        hessian = torch.autograd.functional.hessian(loss, p.log())
        torch.testing.assert_close(hessian, fisher, rtol=1e-10, atol=1e-12)


def test_one_table():
    log_p, _ = two_tables(6, 9)
    p = log_p.exp()
    truth = torch.from_numpy(scipy.stats.entropy(p.numpy(), axis=-1))
    torch.testing.assert_close(tables.entropy(p), truth, rtol=1e-14, atol=0)
    torch.testing.assert_close(tables.perplexity(p), truth.exp(), rtol=1e-14, atol=0)
    torch.testing.assert_close(tables.surprisal(p), -p.log(), rtol=0, atol=0)
    torch.testing.assert_close(
        tables.perplexity(p, p.roll(1, -1)),
        tables.cross_entropy(p, p.roll(1, -1)).exp(),
    )
    leaf = p.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(tables.entropy(leaf).sum(), leaf)
    torch.testing.assert_close(gradient, -1 - p.log())


def test_against_other_libraries():
    infomeasure = pytest.importorskip("infomeasure")
    rel_entr = scipy.special.rel_entr
    for seed in range(5):
        p, q = (t.exp().numpy() for t in two_tables(11, seed=seed))
        t_p, t_q = torch.from_numpy(p), torch.from_numpy(q)
        assert tables.kl(t_p, t_q).item() == pytest.approx(rel_entr(p, q).sum(), rel=1e-13)
        distance = scipy.spatial.distance.jensenshannon(p, q)
        assert tables.js(t_p, t_q).item() == pytest.approx(distance**2, rel=1e-12)
        half_l1 = np.abs(p - q).sum() / 2
        assert tables.total_variation(t_p, t_q).item() == pytest.approx(half_l1)
    # infomeasure counts symbols: give it sequences whose counts are the tables
    a, b = np.repeat([0, 1, 2], [5, 3, 2]), np.repeat([0, 1, 2], [2, 2, 6])
    p, q = torch.tensor([5, 3, 2]).double() / 10, torch.tensor([2, 2, 6]).double() / 10
    assert tables.entropy(p).item() == pytest.approx(infomeasure.entropy(a, approach="discrete"))
    divergence = infomeasure.kld(a, b, approach="discrete")
    assert tables.kl(p, q).item() == pytest.approx(float(divergence), rel=1e-12)
    assert tables.js(p, q).item() == pytest.approx(
        float(infomeasure.jsd(a, b, approach="discrete")), rel=1e-12
    )
    crossed = infomeasure.cross_entropy(a, b, approach="discrete")
    assert tables.cross_entropy(p, q).item() == pytest.approx(float(crossed), rel=1e-12)


P, Q, R = [0.5, 0.5, 0.0], [0.25, 0.75, 0.0], [0.5, 0.0, 0.5]
LN2 = math.log(2)
EDGES = [  # name, p, q, truth by hand
    ("kl", P, P, 0.0),
    ("kl", P, Q, 0.5 * math.log(4 / 3)),
    ("kl", P, R, INF),
    ("kl", [1.0, 0.0, 0.0], R, LN2),
    ("kl", [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], INF),
    ("cross_entropy", P, P, LN2),
    ("cross_entropy", P, R, INF),
    ("cross_entropy", [1.0, 0.0, 0.0], R, LN2),
    ("jeffreys", P, R, INF),
    ("jeffreys", [1.0, 0.0, 0.0], R, INF),
    ("jeffreys", P, Q, 0.25 * math.log(3)),
    ("js", P, R, 0.5 * LN2),
    ("js", [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], LN2),
    ("js_third", [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], math.log(3) - 2 / 3 * LN2),
    ("renyi_0", P, R, LN2),
    ("renyi_0", [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], INF),
    ("renyi_half", P, R, 2 * LN2),
    ("renyi_half", [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], INF),
    ("renyi_2", P, R, INF),
    ("renyi_2", [1.0, 0.0, 0.0], R, LN2),
    ("renyi_inf", P, R, INF),
    ("renyi_inf", [1.0, 0.0, 0.0], R, LN2),
    ("tsallis_third", P, R, 0.75),
    ("tsallis_third", [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], 1.5),
    ("tsallis_3", P, R, INF),
    ("chi2", P, R, INF),
    ("chi2", [1.0, 0.0, 0.0], R, 1.0),
    ("total_variation", P, R, 0.5),
    ("total_variation", [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], 1.0),
    ("hellinger", P, R, math.sqrt(0.5)),
    ("hellinger", [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], 1.0),
    ("hellinger", P, P, 0.0),
]


@pytest.mark.sweep(6)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["probs", "log_probs", "logits"])
@pytest.mark.parametrize(("name", "p", "q", "truth"), EDGES)
def test_edges_have_the_true_value_and_a_finite_gradient(name, p, q, truth, form, dtype):
    """Zero mass, disjoint support, p = q: in one batch with an ordinary row, and row by row."""
    p, q = torch.tensor([p, Q], dtype=dtype), torch.tensor([q, P], dtype=dtype)
    if form != "probs":
        p, q = p.log(), q.log()
    leaves = p.requires_grad_(), q.requires_grad_()
    value = PAIRED[name](*leaves, form=form)
    eps = max(torch.finfo(dtype).eps, 1e-15) if form != "probs" else torch.finfo(value.dtype).eps
    assert value[0].item() == pytest.approx(truth, rel=4 * eps, abs=4 * eps)
    with torch.no_grad():
        torch.testing.assert_close(PAIRED[name](*leaves, form=form), value)
    for gradient in torch.autograd.grad(value.sum(), leaves):
        assert torch.isfinite(gradient).all()


def test_masked_logits_have_the_true_gradient():
    """d KL / d logits_q = q − p and d KL / d logits_p = p (log p/q − KL), also at −inf."""
    p = torch.tensor([0.0, 1.0, -INF], requires_grad=True)
    q = torch.tensor([0.5, 2.0, -INF], requires_grad=True)
    value = tables.kl(p, q, form="logits")
    by_p, by_q = torch.autograd.grad(value, (p, q))
    mass_p, mass_q = p.detach().softmax(-1).double(), q.detach().softmax(-1).double()
    ratio = (mass_p[:2] / mass_q[:2]).log()
    truth = (mass_p[:2] * ratio).sum()
    assert value.item() == pytest.approx(truth.item(), abs=4 * 6e-8)  # 4 ulps of 1
    torch.testing.assert_close(by_q, (mass_q - mass_p).float(), rtol=1e-5, atol=1e-7)
    expected = torch.cat([mass_p[:2] * (ratio - truth), torch.zeros(1)]).float()
    torch.testing.assert_close(by_p, expected, rtol=1e-5, atol=1e-7)


def test_infinite_kl_keeps_the_gradient_of_its_finite_terms():
    p = torch.tensor([0.5, 0.25, 0.25], requires_grad=True)
    q = torch.tensor([0.5, 0.5, 0.0], requires_grad=True)
    value = tables.kl(p, q)
    by_p, by_q = torch.autograd.grad(value, (p, q))
    assert value == INF
    torch.testing.assert_close(by_p, torch.tensor([0.0, -LN2, 0.0]))
    torch.testing.assert_close(by_q, torch.tensor([0.0, 0.5, 0.0]))


@pytest.mark.parametrize("name", [n for n in PAIRED if n not in ("cross_entropy", "renyi_0")])
@pytest.mark.parametrize("step", [1e-2, 1e-4, 3e-6])
def test_nearly_equal_probabilities_keep_their_digits_in_float32(name, step):
    """float32 in, float64 truth *of those very numbers*; the naive sum is off by up to 100 %."""
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])
    q = p * (1 + step * torch.tensor([1.0, -1.0, 1.0, -0.5]))
    shift = p.double().sum() - q.double().sum()
    q = (q.double() + shift / 4).float()
    value = PAIRED[name](p, q).item()
    p, q = p.double(), q.double()
    truth = tables.tsallis(p, q, alpha=1.0) if name == "kl" else PAIRED[name](p, q)
    relative = (q / p - 1).abs().amax().item()
    linear = name in ("total_variation", "renyi_inf")
    tolerance = 1e-6 if linear else 8 * 6e-8 / relative
    assert value >= 0
    assert value == pytest.approx(truth.item(), rel=tolerance)


@pytest.mark.parametrize("size", [2, 1000, 10_000])
def test_kl_of_near_equal_logits_is_small_and_never_negative(size):
    generator = torch.Generator().manual_seed(size)
    logits = torch.randn(4, size, generator=generator)
    for step in (0.0, 1e-6, 1e-4):
        noisy = logits + step * torch.randn(4, size, generator=generator)
        for name, divergence in PAIRED.items():
            if name != "cross_entropy":
                assert (divergence(logits, noisy, form="logits") >= 0).all(), name
        value = tables.kl(logits, noisy, form="logits").double()
        truth = tables.kl(logits.double(), noisy.double(), form="logits")
        log_rounding = 16 * 6e-8  # each float32 log-probability is off by eps·|log p| at most
        assert ((value.sqrt() - truth.sqrt()).abs() <= log_rounding).all()


def test_log_probabilities_below_the_smallest_float_still_count():
    """e^−200 is no float32, but log q = −200 is: KL is finite, 200-odd nats."""
    log_p = torch.tensor([math.log(0.5), math.log(0.5)])
    log_q = torch.tensor([0.0, -200.0])
    for name, truth in (("kl", 100 - LN2), ("renyi_inf", 200 - LN2), ("renyi_half", LN2)):
        value = PAIRED[name](log_p, log_q, form="log_probs")
        assert value.item() == pytest.approx(truth, rel=1e-6)
    assert tables.kl(log_q, log_p, form="log_probs").item() == pytest.approx(LN2, rel=1e-6)
    p = torch.tensor([1.0, 0.0]).log().requires_grad_()
    far = log_q.clone().requires_grad_()
    for divergence in PAIRED.values():
        value = divergence(p, far, form="log_probs")
        assert not value.isnan()
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value, (p, far)))


@pytest.mark.parametrize("alpha", [1 - 1e-3, 1 - 1e-9, 1 + 1e-9, 1 + 1e-3])
def test_orders_near_one_tend_to_kl(alpha):
    p, q = (t.exp() for t in two_tables(6))
    slope = abs(alpha - 1) * 10
    truth = tables.kl(p, q).item()
    assert tables.renyi(p, q, alpha=alpha).item() == pytest.approx(truth, rel=slope + 1e-14)
    assert tables.tsallis(p, q, alpha=alpha).item() == pytest.approx(truth, rel=slope + 1e-14)


def test_high_orders_do_not_overflow_in_logs():
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([1e-30, 1.0])
    truth = (200 * math.log(0.5) + 199 * math.log(1e30)) / 199
    assert tables.renyi(p, q, alpha=200).item() == pytest.approx(truth, rel=1e-6)
    assert tables.tsallis(p, q, alpha=200) == INF


masses = st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda m: sum(m) > 1e-3)


@pytest.mark.slow
@given(masses, masses)
def test_laws(first, second):
    """Non-negative; zero for equal tables; Pinsker; Rényi rises with its order; JS is bounded."""
    p = torch.tensor(first, dtype=torch.float64)
    q = torch.tensor(second, dtype=torch.float64)
    value = {name: f(p, q, normalise=True).item() for name, f in PAIRED.items()}
    assert all(v >= 0 for v in value.values())
    same = {name: f(p, p, normalise=True).item() for name, f in PAIRED.items()}
    del same["cross_entropy"]
    assert all(v == 0 for v in same.values())
    assert 2 * value["total_variation"] ** 2 <= value["kl"] * (1 + 1e-12)
    orders = [value[f"renyi_{order}"] for order in ("0", "half")] + [value["kl"]]
    orders += [value["renyi_2"], value["renyi_inf"]]
    assert all(low <= high * (1 + 1e-9) + 1e-12 for low, high in itertools.pairwise(orders))
    assert value["js"] <= LN2 * (1 + 1e-12)


def test_batches_broadcast_and_blocks_change_nothing(monkeypatch):
    log_p, log_q = two_tables(5, 3, 8)
    truth = TEXTBOOK["kl"](log_p.exp()[:, :1], log_q.exp()[0])
    assert truth.shape == (5, 3)
    for block in (1, 8, 16, 24, 1000):
        monkeypatch.setattr(limits, "BLOCK_ELEMENTS", block)
        value = tables.kl(log_p[:, :1], log_q[0], form="log_probs")
        torch.testing.assert_close(value, truth)
        assert tables.surprisal(log_p, form="log_probs").equal(-log_p)
    assert tables.kl(log_p[:0].exp(), log_q[:0].exp()).shape == (0, 3)


def test_half_precision_is_computed_in_float32():
    p, q = (t.exp() for t in two_tables(3, 5, dtype=torch.bfloat16))
    value = tables.kl(p, q, normalise=True)
    assert value.dtype == torch.float32
    truth = tables.kl(p.double(), q.double(), normalise=True)
    torch.testing.assert_close(value.double(), truth, rtol=1e-5, atol=1e-6)


GOOD = torch.tensor([0.5, 0.5])
REFUSED = [
    (lambda: tables.kl([0.5, 0.5], GOOD), TypeError, "p: expected Tensor; got list"),
    (
        lambda: tables.kl(torch.tensor([1, 0]), GOOD),
        TypeError,
        "p: expected a float tensor; got int",
    ),
    (lambda: tables.entropy(torch.tensor(0.5)), ValueError, r"p: expected a tensor \[\*batch"),
    (lambda: tables.entropy(torch.zeros(3, 0)), ValueError, "outcomes ≥ 1"),
    (lambda: tables.kl(GOOD, torch.ones(3) / 3), ValueError, "p and q: expected the same outcomes"),
    (
        lambda: tables.kl(GOOD, GOOD / 2),
        ValueError,
        "q: expected rows of probs that sum to 1 .* got 0.5",
    ),
    (lambda: tables.kl(GOOD, GOOD, form="log_probs"), ValueError, "p: expected rows of log_probs"),
    (
        lambda: tables.kl(GOOD, torch.tensor([1.5, -0.5])),
        ValueError,
        "masses of at least 0; got -0.5",
    ),
    (lambda: tables.kl(GOOD.log(), GOOD), ValueError, "p: expected masses of at least 0"),
    (lambda: tables.kl(GOOD, GOOD * math.nan), ValueError, "got nan"),
    (lambda: tables.kl(GOOD, GOOD, form="prob"), ValueError, "form: expected 'probs' or"),
    (lambda: tables.entropy(GOOD * 0, normalise=True), ValueError, "finite, positive sum"),
    (lambda: tables.entropy(GOOD - INF, form="logits"), ValueError, "some mass in every row"),
    (lambda: tables.entropy(GOOD * INF, form="logits"), ValueError, "none infinite or NaN"),
    (lambda: tables.entropy(GOOD * math.nan, form="logits"), ValueError, "got nan"),
    (lambda: tables.js(GOOD, GOOD, weight=1.0), ValueError, "weight: expected a number strictly"),
    (lambda: tables.js(GOOD, GOOD, weight="1"), TypeError, "weight: expected int or float"),
    (lambda: tables.renyi(GOOD, GOOD, alpha=-1), ValueError, "alpha: expected an order"),
    (lambda: tables.renyi(GOOD, GOOD, alpha=math.nan), ValueError, "alpha: expected an order"),
    (lambda: tables.tsallis(GOOD, GOOD, alpha=INF), ValueError, "alpha: expected a finite order"),
]


@pytest.mark.parametrize(("call", "error", "text"), REFUSED)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()
