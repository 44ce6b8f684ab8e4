"""supports.compare: infinite KL, Q(support of p) and infinite variances, against asymptotics."""

import itertools
import math

import mpmath as mp
import pytest
import torch
import torch.distributions as d
from scipy import stats
from torch.distributions import transforms as tf

from kullback.exact.families.continuous import InverseGaussian
from kullback.exact.supports import compare, line_of
from truths import case, cases, t64

CASES = cases()
PAIRS = list(itertools.product(CASES, CASES))
SOME = [pytest.param(PAIRS[::23], id="some"), pytest.param(PAIRS, id="all", marks=pytest.mark.slow)]
SLOPE = 0.02  # of the logarithm of an integrand per e-fold: every pair here is further from 0


def grows(p, q, integrand):
    """Say whether ∫ integrand diverges at some end of p, from its slope against log y far out.

    At an end e, y = |x| or 1/|x − e| → ∞ and the integral is ∫ f(x) |dx/dy| y d(log y): it diverges
    unless the logarithm of `f |dx/dy| y` falls. Far out is where it falls below −10⁶, or y = 10⁶.
    """
    points = [(end, side) for end, side in zip(p.scipy.support(), (1, -1), strict=True)]
    points += [
        (end, side)
        for end in q.scipy.support()
        for side in (1, -1)
        if p.scipy.support()[0] < end < p.scipy.support()[1]
    ]
    return any(_diverges(p, q, mp.mpf(float(e)), side, integrand) for e, side in points)


def _diverges(p, q, end, side, integrand):
    values = []
    for power in (mp.mpf(5.5), mp.mpf(6)):
        y = mp.mpf(10) ** power
        x = -side * y if mp.isinf(end) else end + side / y
        size = y if mp.isinf(end) else 1 / y
        log_p, log_q = p.log_density(x), q.log_density(x)
        values.append(integrand(log_p, log_q) + mp.log(size))
    return (values[1] - values[0]) / (mp.log(10) / 2) > -SLOPE


def inside(p, q):
    (a, b), (low, high) = p.scipy.support(), q.scipy.support()
    return low <= a and b <= high


def cross(log_p, log_q):
    return log_p + mp.log(abs(log_q) + 1)


@pytest.mark.parametrize("pairs", SOME)
def test_whether_kl_is_infinite_for_every_pair(pairs):
    mp.mp.dps = 40
    for p, q in pairs:
        truth = not inside(p, q) or grows(p, q, cross)
        found = compare(p.torch, q.torch)
        assert bool(found.infinite) == truth, (p, q)
        assert bool(found.why) == truth


@pytest.mark.parametrize("pairs", SOME)
def test_whether_variances_are_infinite_for_every_pair(pairs):
    mp.mp.dps = 40
    for p, q in pairs:
        if not inside(p, q):
            continue
        found = compare(p.torch, q.torch)
        heavy = grows(p, q, lambda log_p, log_q: log_p + 2 * mp.log(abs(log_q - log_p) + 1))
        assert bool(found.heavy_log) == heavy, (p, q)
        equal = p.name.split("(")[0] == q.name.split("(")[0] == "gumbel"  # left undecided
        heavy = grows(p, q, lambda log_p, log_q: 2 * log_q - log_p)
        assert bool(found.heavy_ratio) == heavy or equal, (p, q)
        heavy = grows(p, q, lambda log_p, log_q: 4 * log_q - 3 * log_p)
        assert bool(found.heavy_control) == heavy or equal, (p, q)


@pytest.mark.parametrize("pairs", SOME)
def test_the_mass_of_q_on_ps_support_for_every_pair(pairs):
    for p, q in pairs:
        found = compare(p.torch, q.torch)
        low, high = p.scipy.support()
        truth = q.scipy.cdf(high) - q.scipy.cdf(low)
        if not bool(found.infinite):
            assert float(found.ratio_mean) == pytest.approx(truth, rel=1e-12, abs=1e-13), (p, q)
        if low <= q.scipy.support()[0] and q.scipy.support()[1] <= high:
            assert float(found.ratio_mean) == 1.0


@pytest.mark.parametrize(
    ("p", "q", "infinite"),
    [  # by hand: E|t|^k < ∞ iff k < df; E e^(|x|/β) under a Laplace of scale b iff b < β; …
        (("student_t", 2.001, 0, 1), ("normal", 0, 1), False),
        (("student_t", 2, 0, 1), ("normal", 0, 1), True),
        (("student_t", 1.001, 0, 1), ("laplace", 0, 1), False),
        (("pareto", 1, 1.001), ("exponential", 1), False),
        (("pareto", 1, 1), ("exponential", 1), True),
        (("pareto", 1, 0.01), ("lognormal", 0, 1), False),
        (("laplace", 0, 0.999), ("gumbel", 0, 1), False),
        (("laplace", 0, 1), ("gumbel", 0, 1), True),
        (("gumbel", 0, 9), ("gumbel", 0, 1), False),
        (("cauchy", 0, 1), ("gumbel", 0, 1), True),
        (("gamma", 1, 1), ("inverse_gamma", 1, 1), True),
        (("gamma", 1.001, 1), ("inverse_gamma", 1, 1), False),
        (("uniform", 0, 1), ("inverse_gamma", 3, 1), True),
        (("uniform", 0.001, 1), ("inverse_gamma", 3, 1), False),
        (("beta", 1e-3, 1), ("lognormal", 0, 1), False),
        (("uniform", 0, 1.0000000000000002), ("uniform", 0, 1), True),
        (("weibull", 1, 0.3), ("weibull", 1, 9), False),
        (("inverse_gamma", 9, 1), ("weibull", 1, 9), True),
        (("inverse_gamma", 9.01, 1), ("weibull", 1, 9), False),
        (("halfcauchy", 1), ("weibull", 1, 1), True),
        (("halfcauchy", 1), ("weibull", 1, 0.99), False),
    ],
)
def test_boundaries_by_hand(p, q, infinite):
    assert bool(compare(case(*p).torch, case(*q).torch).infinite) == infinite


def mixture(weights, family):
    return d.MixtureSameFamily(d.Categorical(torch.tensor(weights, dtype=torch.float64)), family)


def test_mixtures_take_the_union_of_supports_and_the_heaviest_tail():
    starts = torch.tensor([0.0, 1.0, 5.0]).double()
    pieces = mixture([0.3, 0.7, 0.0], d.Uniform(starts, starts + 1))
    joined = compare(d.Uniform(*t64(0, 2)), pieces)
    assert not joined.infinite and joined.ratio_mean == 1.0
    assert compare(d.Uniform(*t64(0, 2.5)), pieces).infinite
    assert compare(d.Uniform(*t64(5, 6)), pieces).infinite  # a component of weight 0
    assert not compare(pieces, d.Uniform(*t64(0, 2))).infinite
    gap = mixture([0.5, 0.5], d.Uniform(2 * starts[:2], 2 * starts[:2] + 1))
    assert compare(d.Uniform(*t64(0, 3)), gap).infinite
    normal = d.Normal(*t64(0, 1))
    within = normal.cdf(torch.tensor([0.0, 1.0, 2.0, 3.0]).double())
    truth = float(within[3] - within[2] + within[1] - within[0])
    assert float(compare(gap, normal).ratio_mean) == pytest.approx(truth, rel=1e-14)
    scale = torch.tensor([1.0, 3.0]).double()
    heavy = mixture([0.9, 0.1], d.StudentT(scale, 0.0, 1.0))
    assert compare(heavy, d.Laplace(*t64(0, 1))).infinite
    assert not compare(
        d.StudentT(*t64(1.5)), mixture([0.5, 0.5], d.Laplace(0 * scale, scale))
    ).infinite
    assert not compare(d.Cauchy(*t64(0, 1)), heavy).infinite


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (([d.Normal, 0.3, 0.7], [tf.ExpTransform()]), d.LogNormal(*t64(0.3, 0.7))),
        (([d.Gamma, 2, 3], [tf.PowerTransform(t64(-1)[0])]), d.InverseGamma(*t64(2, 3))),
        (([d.Exponential, 1], [tf.PowerTransform(t64(0.5)[0])]), d.Weibull(*t64(1, 2))),
        (([d.Exponential, 2], [tf.ExpTransform()]), d.Pareto(*t64(1, 2))),
        (
            ([d.Exponential, 1], [tf.ExpTransform().inv, tf.AffineTransform(0.0, -1.0)]),
            d.Gumbel(*t64(0, 1)),
        ),
        (([d.Uniform, 0, 1], [tf.AffineTransform(1.0, -2.0)]), d.Uniform(*t64(-1, 1))),
        (([d.LogNormal, 0, 1], [tf.ExpTransform().inv]), d.Normal(*t64(0, 1))),
        (
            ([d.Gumbel, 0, 2], [tf.AffineTransform(0.0, -0.5), tf.ExpTransform()]),
            d.Exponential(*t64(1)),
        ),
        (([d.Laplace, 0, 2], [tf.AffineTransform(1.0, 3.0)]), d.Laplace(*t64(1, 6))),
    ],
)
def test_transforms_end_as_the_named_family_does(made, named):
    (make, *values), steps = made
    found = line_of(d.TransformedDistribution(make(*t64(*values)), steps))
    truth = line_of(named)
    assert (found.low, found.high) == (truth.low, truth.high)
    for one, other in ((found.lower, truth.lower), (found.upper, truth.upper)):
        assert one.level == other.level
        assert float(one.order) == pytest.approx(float(other.order), rel=1e-14)
        if named.__class__ is not d.Gumbel or one.level != -1:
            assert float(one.rate) == pytest.approx(float(other.rate), rel=1e-14)


def test_a_transform_without_a_rule_and_a_class_of_ones_own_are_not_known():
    class Odd(d.Normal):
        def log_prob(self, value):
            return super().log_prob(value) * 1.0

    folded = d.TransformedDistribution(d.Normal(*t64(0, 1)), [tf.AbsTransform()])
    for p in (Odd(*t64(0, 1)), folded):
        assert compare(p, d.Normal(*t64(0, 1))) is None
    named = type("Renamed", (d.Normal,), {})
    assert compare(named(*t64(0, 1)), d.Normal(*t64(0, 2))).ratio_mean == 1.0


def test_super_heavy_tails():
    """exp of a Cauchy: E log x is infinite, yet KL between two of them is that of the Cauchys."""
    log_cauchy = d.TransformedDistribution(d.Cauchy(*t64(0, 1)), [tf.ExpTransform()])
    shifted = d.TransformedDistribution(d.Cauchy(*t64(1, 2)), [tf.ExpTransform()])
    assert not compare(log_cauchy, shifted).infinite
    assert compare(log_cauchy, d.LogNormal(*t64(0, 1))).infinite
    assert compare(log_cauchy, d.HalfCauchy(*t64(1))).infinite


def test_independent_products_and_batches():
    low, high = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 3.0]])
    p = d.Independent(d.Uniform(low.double(), high.double()), 1)
    q = d.Independent(d.Normal(torch.zeros(2).double(), 1.0), 1)
    found = compare(p, q)
    normal = d.Normal(*t64(0, 1))
    one, three = (float(normal.cdf(t64(x)[0]) - 0.5) for x in (1, 3))
    assert found.ratio_mean.tolist() == pytest.approx([one * one, one * three], rel=1e-14)
    narrow = d.Independent(d.Uniform(low.double(), torch.tensor([1.0, 2.0]).double()), 1)
    assert compare(p, narrow).infinite.tolist() == [False, True]
    assert compare(
        d.Uniform(*t64(0, 1)),
        d.Uniform(torch.zeros(3).double(), torch.tensor([0.5, 1, 2]).double()),
    ).infinite.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("p", "q", "infinite", "mean"),
    [
        (d.Bernoulli(*t64(0.3)), d.Geometric(*t64(0.3)), False, 0.51),
        (d.Binomial(5, *t64(0.5)), d.Binomial(3, *t64(0.5)), True, 1.0),
        (d.Binomial(3, *t64(0.5)), d.Binomial(5, *t64(0.5)), False, 26 / 32),
        (d.Bernoulli(*t64(0)), d.Bernoulli(*t64(0.25)), False, 0.75),
        (d.Bernoulli(*t64(0.25)), d.Bernoulli(*t64(0)), True, 1.0),
        (d.Poisson(*t64(1e-30)), d.Bernoulli(*t64(0.5)), True, 1.0),
        (d.Poisson(*t64(2)), d.NegativeBinomial(*t64(3, 0.5)), False, 1.0),
        (
            d.Categorical(torch.tensor([0.5, 0, 0.5], dtype=torch.float64)),
            d.Categorical(torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)),
            False,
            0.7,
        ),
        (
            d.Categorical(torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)),
            d.Categorical(torch.tensor([0.5, 0, 0.5], dtype=torch.float64)),
            True,
            1.0,
        ),
        (
            mixture([0.5, 0.5], d.Binomial(5, torch.tensor([0.0, 1.0]).double())),
            d.Binomial(5, *t64(0.5)),
            False,
            2 / 32,
        ),
        (
            d.Binomial(5, *t64(0.5)),
            mixture([0.5, 0.5], d.Binomial(5, torch.tensor([0.0, 1.0]).double())),
            True,
            2 / 32,
        ),
    ],
)
def test_integers(p, q, infinite, mean):
    found = compare(p, q)
    assert bool(found.infinite) == infinite
    if not infinite:
        assert float(found.ratio_mean) == pytest.approx(mean, rel=1e-14)


def test_what_fills_one_space():
    eye = torch.eye(2).double()
    gaussians = (
        d.MultivariateNormal(eye[0], eye),
        mixture([0.5, 0.5], d.MultivariateNormal(eye, eye)),
    )
    found = compare(*gaussians)
    assert (float(found.ratio_mean), found.decided) == (1.0, False)
    both = mixture([0.5, 0.5], d.Independent(d.Bernoulli(torch.full((2, 2), 0.5)), 1))
    assert compare(both, d.Independent(d.Bernoulli(torch.full((2,), 0.2)), 1)).ratio_mean == 1.0
    sure = d.Independent(d.Bernoulli(torch.tensor([0.0, 0.5])), 1)
    assert compare(both, sure) is None
    flat = d.Dirichlet(torch.ones(3))
    assert compare(flat, flat).ratio_mean == 1.0


PI = math.pi


def f64(value):
    return torch.tensor(value, dtype=torch.float64)


def turns(*low_high):
    low, high = (f64(ends) for ends in zip(*low_high, strict=True))
    return d.Uniform(low, high)


def test_a_circle_holds_an_interval_of_one_turn_wherever_it_begins():
    """torch scores von Mises angles of any turn, and has no mass beyond one."""
    circle = d.VonMises(f64(0.3), f64(2.0))
    ends = [(-PI, PI), (0.0, 2 * PI), (1.0, 4.0), (7.0, 9.0), (0.0, 6.3), (-4.0, 4.0)]
    found = compare(turns(*ends), circle)
    assert found.infinite.tolist() == [False, False, False, False, True, True]
    assert not compare(d.Uniform(-PI, PI), circle).infinite  # in float32, whose π is above π
    both = mixture([0.5, 0.5], d.VonMises(f64([0.0, 2.0]), f64([1.0, 3.0])))
    for line in (d.Normal(f64(0.0), f64(0.1)), d.Cauchy(f64(0.0), f64(1.0))):
        for one in (circle, both):
            assert compare(line, one).infinite
            inside = float(line.cdf(f64(PI)) - line.cdf(f64(-PI)))
            assert float(compare(one, line).ratio_mean) == pytest.approx(inside, rel=1e-14)
    assert float(compare(circle, both).ratio_mean) == 1.0


@pytest.mark.parametrize("shape", [-1.5, -0.5, 0.0, 0.3, 0.49, 0.51, 0.99, 1.01, 3.0])
def test_a_generalized_pareto_tail(shape):
    """Survival (1 + ξ z)^(−1/ξ): E x is finite below ξ = 1, E x² below ½; below 0 it ends."""
    p, q = (d.GeneralizedPareto(f64(0.0), f64(1.0), f64(x)) for x in (shape, 0.3))
    found = compare(p, d.Exponential(f64(1.0)))
    assert bool(found.infinite) == (shape >= 1)
    assert bool(found.heavy_log) == (shape >= 0.5)
    assert float(compare(d.Exponential(f64(1.0)), p).infinite) == (shape < 0)
    assert bool(compare(d.Exponential(f64(1.0)), q).heavy_ratio) and not compare(p, q).infinite
    end = -1 / shape if shape < 0 else math.inf
    mass = stats.genpareto(0.3).cdf(end)
    assert float(compare(p, q).ratio_mean) == pytest.approx(mass, rel=1e-13)
    half = compare(d.Uniform(f64(0.0), f64(0.5)), p)
    assert float(half.ratio_mean) == pytest.approx(stats.genpareto(shape).cdf(0.5), rel=1e-13)


@pytest.mark.parametrize(("loc", "shape"), [(1.0, 1.0), (0.2, 30.0), (50.0, 0.1), (1e-3, 1e3)])
def test_the_mass_of_an_inverse_gaussian(loc, shape):
    q = InverseGaussian(f64(loc), f64(shape))
    for low, high in ((0.5 * loc, 2 * loc), (1e-3 * loc, 0.9 * loc)):
        truth = stats.invgauss(loc / shape, scale=shape)
        found = compare(d.Uniform(f64(low), f64(high)), q).ratio_mean
        assert float(found) == pytest.approx(truth.cdf(high) - truth.cdf(low), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(("ulps", "out"), [(6, False), (10, True)])
def test_ends_that_transforms_compute_are_equal_within_eight_ulps(ulps, out):
    scale = 1 + ulps * torch.finfo(torch.float64).eps
    p = d.TransformedDistribution(d.Uniform(*t64(0, 1)), [tf.AffineTransform(0.0, scale)])
    assert bool(compare(p, d.Uniform(*t64(0, 1))).infinite) == out


def one(value):
    return torch.tensor(value, dtype=torch.float64)


def _moved_by(base, *parts):
    return d.TransformedDistribution(base, list(parts))


def _logit_beta(alpha, beta):
    return _moved_by(d.Beta(one(alpha), one(beta)), tf.SigmoidTransform().inv)


def _logistic(scale):
    unit = d.Uniform(one(0.0), one(1.0))
    return _moved_by(unit, tf.SigmoidTransform().inv, tf.AffineTransform(one(1.0), one(scale)))


SECH2 = _moved_by(d.Uniform(one(-1.0), one(1.0)), tf.TanhTransform().inv)  # ½ sech² y


@pytest.mark.parametrize(
    ("p", "q", "infinite", "heavy"),
    [  # densities fall as e^(−y/scale), e^(−one |y|) and e^(−zero y), and e^(−2|y|)
        (d.Cauchy(one(0.0), one(1.0)), _logistic(1.0), True, None),
        (d.StudentT(one(1.1)), _logistic(1.0), False, False),
        (_logistic(1.0), d.Laplace(one(0.0), one(1.9)), False, False),
        (_logistic(1.0), d.Laplace(one(0.0), one(2.1)), False, True),
        (_logistic(0.5), _logistic(0.9), False, False),
        (_logistic(0.5), _logistic(1.1), False, True),
        (_logit_beta(2.0, 3.0), d.Laplace(one(0.0), one(0.65)), False, False),
        (_logit_beta(2.0, 3.0), d.Laplace(one(0.0), one(0.7)), False, True),
        (_logit_beta(3.0, 2.0), d.Laplace(one(0.0), one(0.7)), False, True),
        (SECH2, d.Laplace(one(0.0), one(0.95)), False, False),
        (SECH2, d.Laplace(one(0.0), one(1.05)), False, True),
        (d.Cauchy(one(0.0), one(1.0)), SECH2, True, None),
        (
            d.Normal(one(0.0), one(1.0)),
            _moved_by(d.Uniform(one(0.2), one(0.8)), tf.SigmoidTransform().inv),
            True,
            None,
        ),
    ],
)
def test_tails_of_inverse_sigmoids(p, q, infinite, heavy):
    found = compare(p, q)
    assert bool(found.infinite) is infinite
    assert heavy is None or bool(found.heavy_ratio) is heavy


def test_ends_of_inverse_sigmoids():
    inner = _moved_by(d.Uniform(one(0.2), one(0.8)), tf.SigmoidTransform().inv)
    line = line_of(inner)
    assert float(line.low) == pytest.approx(math.log(0.25), rel=1e-14)
    assert float(line.high) == pytest.approx(math.log(4.0), rel=1e-14)
    assert line_of(_moved_by(d.Uniform(one(-0.5), one(0.5)), tf.SigmoidTransform().inv)) is None
