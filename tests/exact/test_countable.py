"""Sums over the integers: against mpmath, SciPy and closed forms; what is left out; edges."""

import itertools
import math

import mpmath as mp
import pytest
import scipy.stats as st
import torch
import torch.distributions as d

from kullback.exact import closed_forms, countable
from kullback.exact.countable import _absolute, lattice_of, log_masses
from truths import t64

INF = math.inf


def one(value):
    return torch.tensor(value, dtype=torch.float64)


FAMILIES = {
    "bernoulli": (lambda p: d.Bernoulli(one(p)), lambda p: st.bernoulli(p)),
    "binomial": (lambda n, p: d.Binomial(n, one(p)), lambda n, p: st.binom(n, p)),
    "geometric": (lambda p: d.Geometric(one(p)), lambda p: st.geom(p, loc=-1)),
    "negative_binomial": (
        lambda r, p: d.NegativeBinomial(one(r), one(p)),
        lambda r, p: st.nbinom(r, 1 - p),
    ),
    "poisson": (lambda m: d.Poisson(one(m)), lambda m: st.poisson(m)),
}
ROWS = [
    ("bernoulli", 0.3),
    ("bernoulli", 1e-9),
    ("binomial", 5, 0.4),
    ("binomial", 200, 0.015),
    ("geometric", 0.3),
    ("geometric", 0.9),
    ("negative_binomial", 0.05, 0.5),
    ("negative_binomial", 4.0, 0.4),
    ("poisson", 3.0),
    ("poisson", 1e-6),
    ("poisson", 40.0),
]


def made(name, *values):
    return FAMILIES[name][0](*values)


def log_mass(name, *values):
    """log p(x) by mpmath; None outside the support."""
    v = [mp.mpf(value) for value in values]

    def chosen(n, x, p):
        ways = mp.loggamma(n + 1) - mp.loggamma(x + 1) - mp.loggamma(n - x + 1)
        return ways + x * mp.log(p) + (n - x) * mp.log1p(-p)

    def negative_binomial(x):
        ways = mp.loggamma(v[0] + x) - mp.loggamma(x + 1) - mp.loggamma(v[0])
        return ways + v[0] * mp.log1p(-v[1]) + x * mp.log(v[1])

    return {
        "bernoulli": lambda x: chosen(1, x, v[0]) if x <= 1 else None,
        "binomial": lambda x: chosen(v[0], x, v[1]) if x <= v[0] else None,
        "geometric": lambda x: mp.log(v[0]) + x * mp.log1p(-v[0]),
        "negative_binomial": negative_binomial,
        "poisson": lambda x: x * mp.log(v[0]) - v[0] - mp.loggamma(x + 1),
    }[name]


def sums(p, q, most=260):
    """KL, JS, H(p) and H(p, q) by adding up in 40 digits; the tails beyond 260 are below 1e-28."""
    log_p, log_q = log_mass(*p), log_mass(*q)
    kl = js = own = cross = mp.mpf(0)
    for x in range(most):
        a, b = log_p(x), log_q(x)
        for first, other in ((a, b), (b, a)):
            if first is not None:
                ratio = 1 + (0 if other is None else mp.exp(other - first))
                js += mp.exp(first) * (mp.log(2) - mp.log(ratio)) / 2
        if a is not None:
            kl += mp.inf if b is None else mp.exp(a) * (a - b)
            own -= mp.exp(a) * a
            cross += mp.inf if b is None else -mp.exp(a) * b
    return {"kl": kl, "js": js, "entropy": own, "cross_entropy": cross}


PAIRS = list(itertools.product(ROWS, ROWS))
SOME = [pytest.param(PAIRS[::17], id="some"), pytest.param(PAIRS, id="all", marks=pytest.mark.slow)]


@pytest.mark.slow
@pytest.mark.parametrize("pairs", SOME)
def test_every_pair_against_mpmath(pairs):
    mp.mp.dps = 40
    for p, q in pairs:
        truth = sums(p, q)
        given = made(*p), made(*q)
        found = {name: getattr(countable, name)(*given) for name in ("kl", "js", "cross_entropy")}
        found["entropy"] = countable.entropy(given[0])
        for name, total in found.items():
            assert float(total.value) == pytest.approx(float(truth[name]), rel=1e-12, abs=1e-22)
            assert total.remainder <= 1e-13 * max(float(total.value), 1e-300), (p, q, name)


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (d.Poisson(one(3.0)), d.Poisson(one(3.0 + 1e-7))),
        (d.Poisson(one(1e5)), d.Poisson(one(1.01e5))),
        (d.Geometric(one(0.01)), d.Geometric(one(0.02))),
        (d.Binomial(10**6, one(0.3)), d.Binomial(10**6, one(0.3001))),
        (d.NegativeBinomial(one(2.5), one(0.99)), d.NegativeBinomial(one(2.5), one(0.98))),
        (d.Bernoulli(one(0.2)), d.Bernoulli(logits=one(-800.0))),
        (d.Binomial(4, one(0.2)), d.Binomial(4, logits=one(-800.0))),
    ],
)
def test_against_closed_forms(p, q):
    """Near-equal pairs to 2e-7 (log p/q has 16 digits, of which the gap leaves 9), others 1e-11."""
    truth = float(closed_forms.kl(p, q))
    near = 2e-7 if truth < 1e-12 else 1e-11
    assert float(countable.kl(p, q).value) == pytest.approx(truth, rel=near)


def test_a_binomial_close_to_its_poisson():
    """KL(Binomial(n, m/n)‖Poisson(m)) from mpmath, 2.25005e-10 at n = 10^5, m = 3."""
    mp.mp.dps = 40
    p, q = ("binomial", 100_000, 3e-5), ("poisson", 3.0)
    truth = float(sums(p, q, most=80)["kl"])
    found = countable.kl(made(*p), made(*q))
    assert float(found.value) == pytest.approx(truth, rel=1e-9)
    assert truth == pytest.approx(2.25005e-10, rel=1e-5)


@pytest.mark.parametrize(
    ("p", "q", "truth"),
    [
        (d.Poisson(one(1.0)), d.Binomial(10**6, one(0.5)), INF),
        (d.Binomial(5, one(0.5)), d.Binomial(3, one(0.5)), INF),
        (d.Bernoulli(one(0.0)), d.Geometric(one(0.25)), math.log(4)),
        (d.Poisson(one(0.0)), d.Poisson(one(2.0)), 2.0),
        (d.Poisson(one(2.0)), d.Poisson(one(0.0)), INF),
        (d.Geometric(one(1.0)), d.Poisson(one(2.0)), 2.0),
        (d.Binomial(0, one(0.5)), d.Poisson(one(2.0)), 2.0),
        (d.NegativeBinomial(one(3.0), one(0.0)), d.Geometric(one(0.5)), math.log(2)),
        (d.Poisson(one(1.0)), d.Poisson(one(1.0)), 0.0),
    ],
)
def test_edges(p, q, truth):
    assert float(countable.kl(p, q).value) == pytest.approx(truth, rel=1e-13, abs=0)


def test_a_gap_inside_is_infinite_and_elementwise():
    atoms = d.MixtureSameFamily(
        d.Categorical(one([0.5, 0.5])), d.Binomial(one(5.0), one([0.0, 1.0]))
    )
    assert countable.kl(d.Binomial(5, one(0.5)), atoms).value == INF
    truth = math.log(16)
    assert float(countable.kl(atoms, d.Binomial(5, one(0.5))).value) == pytest.approx(truth)
    found = countable.kl(d.Binomial(one([3.0, 5.0]), one(0.5)), d.Binomial(one(3.0), one(0.5)))
    assert found.value.tolist() == [0.0, INF]


def test_mixtures_against_scipy():
    weights, rates = one([0.25, 0.75]), one([2.0, 30.0])
    p = d.MixtureSameFamily(d.Categorical(weights), d.Poisson(rates))
    q = d.NegativeBinomial(*t64(3, 0.8))
    x = torch.arange(200.0).numpy()
    masses = 0.25 * st.poisson(2).pmf(x) + 0.75 * st.poisson(30).pmf(x)
    truth = st.entropy(masses, st.nbinom(3, 0.2).pmf(x) / st.nbinom(3, 0.2).cdf(199))
    truth -= math.log(st.nbinom(3, 0.2).cdf(199))
    assert float(countable.kl(p, q).value) == pytest.approx(float(truth), rel=1e-12)


def test_a_wide_q_is_summed_over_p_alone():
    """KL(Poisson(3)‖Geometric(1e-9)) = −H(p) − log g − 3 log(1 − g)."""
    found = countable.kl(d.Poisson(one(3.0)), d.Geometric(one(1e-9)))
    own = float(countable.entropy(d.Poisson(one(3.0))).value)
    assert float(found.value) == pytest.approx(-own - math.log(1e-9) + 3e-9, rel=1e-12)
    assert found.last < 200


def test_what_is_too_long_or_unknown_is_left():
    assert countable.entropy(d.Poisson(one(1e15))) is None
    assert countable.kl(d.Geometric(one(1e-8)), d.Poisson(one(3.0))) is None
    assert countable.kl(d.Poisson(one(1.0)), d.Normal(*t64(0, 1))) is None
    assert countable.js(d.Poisson(one(1.0)), d.Geometric(one(1e-9))) is None
    assert lattice_of(d.Multinomial(3, one([0.5, 0.5]))) is None


def test_gradients_and_batches():
    rate = one([0.5, 3.0]).requires_grad_()
    countable.kl(d.Poisson(rate), d.Poisson(one(2.0))).value.sum().backward()
    assert rate.grad.tolist() == pytest.approx((rate.detach() / 2).log().tolist(), rel=1e-12)
    found = countable.kl(d.Poisson(one([[1.0], [4.0]])), d.Poisson(one([2.0, 5.0, 9.0])))
    truth = closed_forms.kl(d.Poisson(one([[1.0], [4.0]])), d.Poisson(one([2.0, 5.0, 9.0])))
    torch.testing.assert_close(found.value, truth, rtol=1e-12, atol=0)


@pytest.mark.parametrize("row", ROWS)
def test_masses_against_scipy(row):
    x = torch.arange(60, dtype=torch.float64)
    truth = torch.from_numpy(FAMILIES[row[0]][1](*row[1:]).logpmf(x.numpy()))
    found = log_masses(made(*row), x)
    torch.testing.assert_close(found, truth, rtol=1e-11, atol=1e-12)


def test_the_words():
    assert str(countable.kl(d.Binomial(3, one(0.5)), d.Binomial(5, one(0.5)))) == "sum over 0 … 5"
    total = countable.kl(d.Bernoulli(one(0.3)), d.Geometric(one(0.3)))
    assert str(total) == "sum over 0 … 94, remainder < 1e-14"
    assert float(total.value) == pytest.approx(0.70011, abs=5e-6)


def test_the_bound_of_what_is_left_out_is_the_sum_of_absolute_terms():
    p, q = (torch.stack(t64(*masses)) for masses in ((0.5, 0.5, 0.0), (0.25, 0.5, 0.25)))
    truth = 1 + 0.5 * math.log(2)
    assert float(_absolute([p.log(), q.log()])) == pytest.approx(truth, rel=1e-15)
