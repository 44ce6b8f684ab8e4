"""Closed forms: the values of bug reports, logits, supports' ends, LKJ, entropies, Renyi orders."""

import math
import random

import mpmath as mp
import pytest
import torch
import torch.distributions as D

from kullback.exact import bregman, closed_forms, quadrature, tables
from kullback.exact.families.crossed import beta_negentropy, gamma_negentropy
from textbook import P, bernoulli, kl, low_rank, table

INF = math.inf


def f(*values):
    return torch.tensor(values if len(values) > 1 else values[0])


def t(*values):
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64)


UNIFORM, FAR = D.Uniform(f(0.2), f(0.8)), D.Gumbel(f(218.0), f(0.49))
REPORTED = [  # p, q, the value of quadrature in the precision of the parameters
    (D.Gamma(f(1e5), f(1.0)), D.Normal(f(1e5), f(316.0)), 3.85e-6, 5e-3),
    (D.Beta(f(500.0), f(500.0)), D.Normal(f(0.5), f(0.0158)), 8.0e-7, 2e-2),
    (
        D.Gamma(t(94708.8), t(0.0929)),
        D.Gumbel(t(9625.05), t(1.0007)),
        1009129.43,
        1e-3,
    ),
    (UNIFORM, FAR, INF, 0),
    (D.Uniform(t(0.2), t(0.8)), D.Gumbel(t(218.0), t(0.49)), 6.3e192, 0.3),
]


@pytest.mark.parametrize(("p", "q", "truth", "relative"), REPORTED)
def test_values_of_bug_reports(p, q, truth, relative):
    value = closed_forms.kl(p, q).item()
    assert value == truth or abs(value - truth) <= relative * truth


def test_negentropies_tend_to_their_leading_terms():
    """J of Gamma(a) is 1/(3a) and of Beta(a, a) 3/(4n²), n = 2a, up to the next order."""
    assert gamma_negentropy(t(1e6)).item() == pytest.approx(1 / 3e6, rel=1e-6)
    assert beta_negentropy(t(1e6), t(1e6)).item() == pytest.approx(0.75 / 4e12, rel=3e-6)


LOGITS = [
    (lambda x: D.Bernoulli(logits=x), 1.0),
    (lambda x: D.Binomial(7, logits=x), 7.0),
    (lambda x: D.Geometric(logits=x), None),
    (lambda x: D.NegativeBinomial(t(2.5), logits=x), None),
]


@pytest.mark.parametrize(("build", "trials"), LOGITS)
def test_odds_given_as_logits_from_near_and_far(build, trials):
    rng = random.Random(0)
    for _ in range(24):
        first = rng.uniform(-30, 30)
        second = rng.choice((first * (1 + 10 ** rng.uniform(-12, -1)), rng.uniform(-30, 30)))
        p, q = build(t(first)), build(t(second))
        chances = [1 / (1 + mp.exp(-mp.mpf(v))) for v in (first, second)]
        truth = bernoulli(chances[:1], chances[1:])
        if trials is None:
            missed = 1 - chances[0]
            truth *= 2.5 / missed if isinstance(p, D.NegativeBinomial) else 1 / chances[0]
        else:
            truth *= trials
        assert closed_forms.kl(p, q).item() == pytest.approx(float(truth), rel=1e-9)


@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-9, 1e-12])
def test_tables_and_categoricals_that_nearly_agree(delta):
    """Logits, probabilities and plain tables; a KL of 1e-25 keeps six digits."""
    step = delta * torch.tensor([1.0, -0.4, 0.3, 0.9]).double()
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0]).double().log_softmax(-1)
    p, q = D.Categorical(logits=logits), D.Categorical(logits=logits + step)
    rows = [[mp.exp(mp.mpf(v)) for v in d.logits.tolist()] for d in (p, q)]
    truth = float(table(*rows))
    noise = 1e-15 / delta  # of the difference of the rounded logits, which rows are normalised by
    assert closed_forms.kl(p, q).item() == pytest.approx(truth, rel=1e-6)
    assert tables.kl(p.logits, q.logits, form="logits").item() == pytest.approx(
        truth, rel=noise + 1e-6
    )
    assert tables.renyi(p.logits, q.logits, alpha=2.0, form="logits").item() == pytest.approx(
        2 * truth, rel=noise + 3 * delta
    )
    masses = [torch.softmax(v, -1) for v in (logits, logits + step)]
    truth = float(table(*[[mp.mpf(v) for v in row.tolist()] for row in masses]))
    floor = 1e-32  # what a sum that is off by one eps adds
    assert tables.kl(*masses).item() == pytest.approx(truth, rel=1e-6, abs=floor)
    assert tables.kl(masses[0], masses[0]).item() == 0


ENDS = [
    (D.Uniform(t(0.0), t(1.0)), D.Uniform(t(0.0), t(0.5)), INF),
    (D.Uniform(t(-0.1), t(1.0)), D.Beta(t(2.0), t(2.0)), INF),
    (D.Uniform(t(0.0), t(1.0)), D.Beta(t(1.0), t(1.0)), 0.0),
    (D.Beta(t(1.0), t(1.0)), D.Uniform(t(0.0), t(1.0)), 0.0),
    (D.ContinuousBernoulli(t(0.5)), D.Uniform(t(0.0), t(1.0)), 0.0),
    (D.Pareto(t(1.0), t(2.0)), D.Pareto(t(2.0), t(2.0)), INF),
    (D.Pareto(t(1.0), t(1.0)), D.Exponential(t(1.0)), INF),
    (D.Pareto(t(1.0), t(2.0)), D.Normal(t(1.0), t(1.0)), INF),
    (D.Uniform(t(-1.0), t(1.0)), D.Gamma(t(1.0), t(1.0)), INF),
    (D.Bernoulli(t(0.5)), D.Poisson(t(0.0)), INF),
    (D.Bernoulli(t(0.0)), D.Poisson(t(1.0)), 1.0),
    (D.Exponential(t(3.0)), D.Gamma(t(1.0), t(3.0)), 0.0),
    (D.Categorical(t(1.0, 0.0)), D.Categorical(t(0.0, 1.0)), INF),
    (D.NegativeBinomial(t(0.0), t(0.5)), D.NegativeBinomial(t(0.0), t(0.1)), 0.0),
]


@pytest.mark.parametrize(("p", "q", "truth"), ENDS)
def test_supports_ends(p, q, truth):
    assert closed_forms.kl(p, q).item() == truth


BORDERS = [  # one end of p is one of q's, or p is heavy-tailed with a mean; log Γ(2) = log Γ(1) = 0
    (D.Uniform(t(0.0), t(2.0)), D.Gamma(t(2.0), t(3.0)), 4 - math.log(4) - math.log(9)),
    (D.Uniform(t(0.0), t(2.0)), D.Exponential(t(3.0)), 3 - math.log(6)),
    (D.Uniform(t(0.0), t(0.8)), D.Beta(t(2.0), t(1.0)), 1 - 2 * math.log(0.8) - math.log(2)),
    (D.Uniform(t(0.2), t(1.0)), D.Beta(t(1.0), t(2.0)), 1 - 2 * math.log(0.8) - math.log(2)),
    (D.Pareto(t(1.0), t(1.5)), D.Exponential(t(1.0)), 4 / 3 + math.log(1.5)),
    (D.Pareto(t(2.0), t(1.5)), D.Gamma(t(2.0), t(0.5)), 2 / 3 + math.log(1.5)),
]


@pytest.mark.parametrize(("p", "q", "truth"), BORDERS)
def test_on_the_border_of_a_case(p, q, truth):
    assert closed_forms.kl(p, q).item() == pytest.approx(truth, rel=1e-14)


RENYI_BORDERS = [  # of order 2: infinite from p² / q on that has no integral any more
    (D.Gamma, (1.0, 1.0), (2.0, 1.0)),
    (D.Gamma, (2.0, 1.0), (2.0, 2.0)),
    (D.InverseGamma, (1.0, 1.0), (2.0, 1.0)),
    (D.Exponential, (1.0,), (2.0,)),
    (D.Beta, (1.0, 3.0), (2.0, 3.0)),
    (D.Beta, (3.0, 1.0), (3.0, 2.0)),
]


@pytest.mark.parametrize(("family", "p", "q"), RENYI_BORDERS)
def test_renyi_is_infinite_from_the_border_on_and_finite_inside(family, p, q):
    first, second = family(*map(t, p)), family(*map(t, q))
    assert closed_forms.renyi(first, second, alpha=2.0) == INF
    inside = [x + 1e-6 * (y - x) * (x != y) for x, y in zip(p, q, strict=True)]
    assert closed_forms.renyi(family(*map(t, inside)), second, alpha=2.0).isfinite()


def log_sinhc(x):
    return mp.log(mp.sinh(x / 2) * 2 / x) if x else mp.mpf(0)


def log_sinhc_slope(x):
    return mp.coth(x / 2) / 2 - 1 / x if x else mp.mpf(0)


def bessel_mean(x):
    return mp.besseli(1, x) / mp.besseli(0, x)


def stirling(x):
    return mp.loggamma(x) - (x - mp.mpf(1) / 2) * mp.log(x) + x - mp.log(2 * mp.pi) / 2


def stirling_slope(x):
    return mp.digamma(x) - mp.log(x) + 1 / (2 * x)


def bregman_of(function, slope):
    return lambda x, h: function(x + h) - function(x) - h * slope(x)


GAMMAS = (1e-3, 0.4, 1.0, 1.1, 1.2, 2.0, 3.0, 7.5, 16.0, 100.0, 1e6)
STEPS = ((2.0, 1e-7), (2.0, 0.9), (2.0, -0.99), (2.0, -1.5), (2.0, 5.0), (40.0, 1.0), (0.01, 3.0))
SINHC_STEPS = ((0.5, 1e-7), (0.0, 1.9), (0.3, 2.1), (-5.0, 2.4), (-5.0, 2.6), (6.0, -3.1))
SINHC_STEPS += ((6.0, 30.0), (10.0, 19.0), (-10.0, 19.0))
BESSEL_STEPS = ((0.5, 1e-7), (0.2, 0.9), (0.2, 1.1), (5.0, 2.4), (5.0, 2.6), (5.0, -4.0))
BESSEL_STEPS += ((28.0, 6.0), (32.0, 1e-3), (45.0, 10.0), (45.0, 40.0))
FEW = 16  # eps: "a few eps of itself", and what a sum of as many terms rounds
EXCESS = 80  # eps: 2/|l| at the least |l| that the direct form takes
CUT = 300  # eps: the first Bernoulli term left out at 1, B₂₀ 19/20! of 1/12
CANCELS = 2 * 30**2  # eps: of 1 − A/x − A² = 1/2x² up to the series
OF_ONE = {
    "log_excess": (
        lambda x: mp.expm1(x) - x,
        (-30.0, -1.0, -0.03, -0.02, 1e-9, 0.02, 0.03, 1.0, 30.0),
        EXCESS,
    ),
    "stirling": (stirling, GAMMAS, FEW),
    "stirling_slope": (stirling_slope, GAMMAS, FEW),
    "stirling_bend": (lambda x: mp.polygamma(1, x) - 1 / x - 1 / (2 * x * x), GAMMAS, FEW),
    "log_sinhc": (log_sinhc, (1e-6, 0.1, 0.9, -0.9, 0.99, 1.01, 3.0, 700.0), FEW),
    "inverse_sinh_mean": (
        lambda x: 1 / abs(x) - 1 / mp.expm1(abs(x)),
        (1e-6, 0.1, -0.45, 0.49, 0.51, 3.0, 40.0),
        FEW,
    ),
    "sinhc_bend": (
        lambda x: 1 / x**2 - 1 / (4 * mp.sinh(x / 2) ** 2),
        (1e-3, 0.1, 0.9, 0.99, 1.01, -3.0, 40.0),
        CUT,
    ),
    "log1mexp": (lambda x: mp.log(-mp.expm1(-x)), (1e-9, 0.1, 0.69, 0.7, 3.0, 40.0), FEW),
}
OF_TWO = {
    "of_stirling": (bregman_of(stirling, stirling_slope), STEPS, FEW),
    "of_log_gamma": (bregman_of(mp.loggamma, mp.digamma), STEPS, EXCESS),
    "stirling_slope_step": (lambda x, h: stirling_slope(x + h) - stirling_slope(x), STEPS, FEW),
    "of_softplus": (
        bregman_of(lambda x: mp.log1p(mp.exp(x)), lambda x: 1 / (1 + mp.exp(-x))),
        ((0.0, 1e-7), (3.0, 0.9), (-3.0, -1.0), (0.0, 1.0)),
        FEW,
    ),
    "of_log_sinhc": (
        bregman_of(log_sinhc, log_sinhc_slope),
        SINHC_STEPS,
        FEW,
    ),
    "of_log_bessel": (
        bregman_of(lambda x: mp.log(mp.besseli(0, x)), bessel_mean),
        BESSEL_STEPS,
        CANCELS,
    ),
    "relative_entropy": (
        lambda x, y: x * mp.log(x / y) - x + y,
        ((2.0, 2.0000001), (2.0, 5.0), (2.0, 5.5), (2.0, 0.8), (2.0, 0.7), (2.0, 900.0)),
        EXCESS,
    ),
}


@pytest.mark.parametrize("name", [*OF_ONE, *OF_TWO])
def test_special_functions_on_both_sides_of_each_of_their_branches(name):
    truth, points, eps = (OF_ONE | OF_TWO)[name]
    columns = [points] if name in OF_ONE else list(zip(*points, strict=True))
    found = getattr(bregman, name)(*(t(*column) for column in columns)).tolist()
    with mp.workdps(60):
        for value, *point in zip(found, *columns, strict=True):
            true = truth(*map(mp.mpf, point))
            assert abs(value - true) <= eps * 2.0**-52 * abs(true), point


def test_lkj_in_two_dimensions_against_quadrature():
    for eta_p, eta_q in ((1.5, 3.0), (2.0, 1.0), (5.0, 5.5)):
        p, q = D.LKJCholesky(2, t(eta_p)), D.LKJCholesky(2, t(eta_q))

        truth = quadrature.kl(
            lambda z, d=p: d.log_prob(factors(angle(z))) + jacobian(z),
            lambda z, d=q: d.log_prob(factors(angle(z))) + jacobian(z),
            lower=0.0,
            upper=1.0,
            nodes=300,
        )
        assert closed_forms.kl(p, q).item() == pytest.approx(truth.item(), rel=1e-9)


def angle(z):
    return torch.cos(math.pi * z[:, 0])


def jacobian(z):
    return torch.log(math.pi * torch.sin(math.pi * z[:, 0]))


def factors(correlation):
    zero, one = torch.zeros_like(correlation), torch.ones_like(correlation)
    rows = [
        torch.stack(row, -1) for row in ((one, zero), (correlation, (1 - correlation**2).sqrt()))
    ]
    return torch.stack(rows, -2)


def test_lkj_in_three_dimensions_against_quadrature():
    """Over w₂₁ = sin a and the disc of (w₃₁, w₃₂), where only the radius changes the density."""
    p, q = D.LKJCholesky(3, t(1.5)), D.LKJCholesky(3, t(4.0))
    points, log_weights = quadrature.grid((-math.pi / 2, 0.0), (math.pi / 2, math.pi / 2), nodes=60)
    first, radius = points.sin().unbind(-1)
    zero, one = torch.zeros_like(first), torch.ones_like(first)
    rows = (
        (one, zero, zero),
        (first, points[:, 0].cos(), zero),
        (radius, zero, points[:, 1].cos()),
    )
    z = torch.stack([torch.stack(row, -1) for row in rows], -2)
    slopes = points.cos().log().sum(-1) + torch.log(2 * math.pi * radius)
    log_p = p.log_prob(z) + slopes + log_weights
    assert log_p.exp().sum().item() == pytest.approx(1.0, rel=1e-9)
    truth = (log_p.exp() * (p.log_prob(z) - q.log_prob(z))).sum()
    assert closed_forms.kl(p, q).item() == pytest.approx(truth.item(), rel=1e-9)


def test_lkj_in_batches_and_one_dimension():
    wide = closed_forms.kl(D.LKJCholesky(4, t(1.0, 2.0)), D.LKJCholesky(4, t(3.0)))
    each = [closed_forms.kl(D.LKJCholesky(4, t(v)), D.LKJCholesky(4, t(3.0))) for v in (1.0, 2.0)]
    torch.testing.assert_close(wide, torch.stack(each))
    with pytest.raises(ValueError, match="the same event shape"):
        closed_forms.kl(D.LKJCholesky(4, t(1.0)), D.LKJCholesky(3, t(1.0)))


SHAPES = {"Gamma": (D.Gamma, 2), "Beta": (D.Beta, 2), "Gumbel": (D.Gumbel, 2)}
SHAPES |= {"Exponential": (D.Exponential, 1), "Pareto": (D.Pareto, 2), "Laplace": (D.Laplace, 2)}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SHAPES)
def test_entropies_against_their_textbooks(name, dtype):
    """Within 1e-6 of the value, or of 1 where the value is near 0."""
    build, count = SHAPES[name]
    rng = random.Random(name)
    for _ in range(20):
        given = [torch.tensor(10 ** rng.uniform(-6, 6), dtype=dtype) for _ in range(count)]
        truth = float(P[name](*(mp.mpf(v.item()) for v in given)).entropy)
        value = closed_forms.entropy(build(*given))
        assert value.dtype == dtype
        assert abs(value.item() - truth) <= 1e-6 * max(1.0, abs(truth))


ENTROPIES = [
    D.HalfNormal(t(2.0)),
    D.HalfCauchy(t(2.0)),
    D.Cauchy(t(1.0), t(2.0)),
    D.Weibull(t(2.0), t(3.0)),
    D.LogNormal(t(1.0), t(2.0)),
    D.InverseGamma(t(3.0), t(2.0)),
    D.Dirichlet(t(2.0, 0.5, 3.0)),
    D.ContinuousBernoulli(t(0.3)),
    D.Geometric(t(0.3)),
    D.MultivariateNormal(t(0.0, 1.0), scale_tril=t(1.0, 0.0, 0.5, 2.0).reshape(2, 2)),
    D.StudentT(t(3.0), t(0.0), t(2.0)),
]


@pytest.mark.parametrize("p", ENTROPIES)
def test_entropies_agree_with_torch_where_torch_is_right(p):
    found = closed_forms.find_entropy(p)
    torch.testing.assert_close(found.function(p), p.entropy(), rtol=1e-12, atol=1e-12)


def log_normaliser(name, theta):
    if name == "Gamma":
        return mp.loggamma(theta[0]) - theta[0] * mp.log(theta[1])
    if name == "Exponential":
        return -mp.log(theta[0])
    return sum(mp.loggamma(v) for v in theta) - mp.loggamma(sum(theta))


@pytest.mark.sweep(8)
@pytest.mark.parametrize("order", [0.3, 0.999, 1.5, 2.0, 7.0])
@pytest.mark.parametrize("name", ["Gamma", "Exponential", "Beta"])
def test_renyi_against_the_log_normalisers(name, order):
    build, count = SHAPES[name]
    rng, alpha = random.Random(f"{name}{order}"), mp.mpf(order)
    for k in range(16):
        p = [10 ** rng.uniform(-3, 5) for _ in range(count)]
        spread = 10 ** rng.uniform(-10, -1) if k % 2 else 1.0
        q = [v * (1 + spread * rng.uniform(-0.9, 0.9)) for v in p]
        thetas = [[mp.mpf(v) for v in values] for values in (p, q)]
        mixed = [alpha * a + (1 - alpha) * b for a, b in zip(*thetas, strict=True)]
        value = closed_forms.renyi(*(build(*map(t, v)) for v in (p, q)), alpha=order).item()
        if min(mixed) <= 0:
            assert value == INF
            continue
        parts = [log_normaliser(name, v) for v in (mixed, *thetas)]
        truth = float((parts[0] - alpha * parts[1] - (1 - alpha) * parts[2]) / (alpha - 1))
        assert value == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("order", [0.3, 0.999, 1.5, 2.0])
def test_renyi_of_gaussians_that_nearly_agree(order):
    """`α δ²/(2 v) + [log v_m − (1 − α) log v_p − α log v_q]/(2(1 − α))`, in mpmath."""
    for delta in (1e-1, 1e-4, 1e-8, 1e-12):
        p, q = (0.3, 1.7), (0.3 * (1 + delta), 1.7 * (1 - delta))
        (m1, s1), (m2, s2) = ([mp.mpf(v) for v in values] for values in (p, q))
        alpha = mp.mpf(order)
        mixed = (1 - alpha) * s1**2 + alpha * s2**2
        logs = mp.log(mixed) - 2 * (1 - alpha) * mp.log(s1) - 2 * alpha * mp.log(s2)
        truth = float(alpha * (m1 - m2) ** 2 / (2 * mixed) + logs / (2 * (1 - alpha)))
        normals = [D.Normal(t(m), t(s)) for m, s in (p, q)]
        assert closed_forms.renyi(*normals, alpha=order).item() == pytest.approx(truth, rel=1e-6)
        full = [D.MultivariateNormal(t(m)[None], scale_tril=t(s)[None, None]) for m, s in (p, q)]
        found = closed_forms.renyi(*full, alpha=order).item()
        assert found == pytest.approx(truth, rel=max(1e-6, 1e-15 / delta))


@pytest.mark.parametrize("large", [1.0, 1e2, 1e3])
@pytest.mark.parametrize("delta", [0.5, 1e-2, 1e-6, 1e-10])
def test_low_rank_where_the_factor_is_far_above_the_diagonal(large, delta):
    """Condition numbers of `large³`, to 1e9: within 1e-6, or twenty times that times eps."""
    rng = random.Random(f"{large}{delta}")
    p = [rng.gauss(0, 1) * size for size in (1, 1, 1, large, large, large)]
    p += [rng.uniform(0.5, 2) / large for _ in range(3)]
    q = [v * (1 + delta * rng.uniform(-1, 1)) for v in p]
    name = "LowRankMultivariateNormal"
    truth = kl(name, name, *([mp.mpf(v) for v in values] for values in (p, q)))
    value = closed_forms.kl(*(low_rank(*map(t, values)) for values in (p, q))).item()
    assert value == pytest.approx(float(truth), rel=max(1e-6, 20 * large**3 * 2.3e-16))


def student_t_entropy(df, scale):
    x = mp.mpf(df) / 2
    slopes = (x + 0.5) * (mp.digamma(x + 0.5) - mp.digamma(x))
    return slopes + mp.log(mp.sqrt(2 * x) * mp.beta(x, 0.5)) + mp.log(scale)


def wishart_entropy(df, scale):
    """Of the scale matrix s² I₃."""
    n, gammas = mp.mpf(df), 1.5 * mp.log(mp.pi) + sum(mp.loggamma((df - j) / 2) for j in range(3))
    slopes = sum(mp.digamma((df - j) / 2) for j in range(3))
    scales = 12 * mp.log(scale) + 6 * mp.log(2)
    return scales + gammas - (n - 4) / 2 * slopes + 1.5 * n


def binomial_entropy(n, p):
    masses = [mp.binomial(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    return -sum(m * mp.log(m) for m in masses if m > 0)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_entropies_that_torch_rounds_hold_in_float32(dtype):
    def at(*values):
        given = torch.tensor(values, dtype=dtype)
        return given, [mp.mpf(v) for v in given.tolist()]

    cases = []
    for df in (1e-6, 1e-3, 3.0, 1e6, 1e10):
        given, (n, s) = at(df, 2.0)
        cases.append((D.StudentT(given[0], 0.0, given[1]), student_t_entropy(n, s)))
    for df in (3.0, 5.0, 1e6, 1e9):
        given, (n, s) = at(df, 0.5)
        wishart = D.Wishart(given[0], scale_tril=given[1] * torch.eye(3, dtype=dtype))
        cases.append((wishart, wishart_entropy(n, s)))
    for n, chance in ((4, 0.3), (1000, 0.5), (50, 1.0), (50, 0.0), (200, 1e-6)):
        given, (p,) = at(chance)
        truth = binomial_entropy(n, p)
        cases.append((D.Binomial(n, given[0]), truth))
        cases.append((D.Multinomial(n, torch.stack([given[0], 1 - given[0]])), truth))
    for distribution, truth in cases:
        value = closed_forms.entropy(distribution)
        assert value.dtype == dtype
        assert abs(float(value) - float(truth)) <= 1e-6 * max(1, abs(float(truth))), distribution


def test_binomials_of_several_counts_have_an_entropy_each():
    value = closed_forms.entropy(D.Binomial(t(3.0, 5.0, 0.0), t(0.3)))
    truth = [binomial_entropy(n, mp.mpf(0.3)) for n in (3, 5, 0)]
    torch.testing.assert_close(value, t(*map(float, truth)), rtol=1e-12, atol=1e-12)


INTEGERS = [
    (D.Normal, (0, 1), (1, 2)),
    (D.Gamma, (3, 4), (2, 5)),
    (D.Exponential, (2,), (3,)),
    (D.Uniform, (0, 3), (0, 5)),
    (D.Laplace, (0, 1), (1, 2)),
    (D.Poisson, (3,), (4,)),
    (D.Bernoulli, (1,), (1,)),
]


@pytest.mark.parametrize(("family", "p", "q"), INTEGERS)
def test_integer_parameters_have_values_that_are_not_cut_to_integers(family, p, q):
    whole = [family(*(torch.tensor(v) for v in given)) for given in (p, q)]
    floats = [family(*(torch.tensor(float(v)) for v in given)) for given in (p, q)]
    quantities = [closed_forms.kl]
    if closed_forms.find_entropy(floats[0]):
        quantities += [lambda a, b: closed_forms.entropy(a), closed_forms.cross_entropy]
    if (family, family) in closed_forms.ORDERS:
        quantities.append(lambda a, b: closed_forms.renyi(a, b, alpha=0.5))
    for quantity in quantities:
        torch.testing.assert_close(quantity(*whole), quantity(*floats), rtol=0, atol=0)


def test_integer_gaussians_and_infinite_pairs():
    zero, one = torch.tensor([0, 0]), torch.tensor([1, 1])
    p, q = D.Independent(D.Normal(zero, one), 1), D.Independent(D.Normal(one, 2 * one), 1)
    assert closed_forms.kl(p, q).item() == pytest.approx(2 * (math.log(2) - 0.25), rel=1e-6)
    value = closed_forms.renyi(p, q, alpha=2)
    assert value.is_floating_point() and value > 0
    normal = D.Normal(torch.tensor(0), torch.tensor(1))
    assert closed_forms.kl(normal, D.Exponential(torch.tensor(1))) == math.inf


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("n", "p", "m", "q"),
    [
        (3, 0.3, 5, 0.4),
        (1000, 0.5, 1001, 0.4995),
        (10, 1e-6, 12, 1e-6),
        (5, 1.0, 7, 0.3),
        (100, 0.9, 5000, 1e-4),
        (0, 0.5, 4, 0.5),
        (20, 0.999999, 2000, 0.01),
    ],
)
def test_a_binomial_of_fewer_trials_is_summed(n, p, m, q):
    value = closed_forms.kl(D.Binomial(n, t(p)), D.Binomial(m, t(q)))
    with mp.workdps(40):
        masses = [
            [mp.binomial(c, k) * mp.mpf(x) ** k * (1 - mp.mpf(x)) ** (c - k) for k in range(n + 1)]
            for c, x in ((n, p), (m, q))
        ]
        truth = float(sum(a * mp.log(a / b) for a, b in zip(*masses, strict=True) if a > 0))
    assert value.item() == pytest.approx(truth, rel=1e-9)


def test_binomials_of_fewer_trials_row_by_row_and_outside_the_support():
    p = D.Binomial(t(3.0, 5.0, 7.0), t(0.3))
    value = closed_forms.kl(p, D.Binomial(5, t(0.4)))
    assert value[0].item() == pytest.approx(0.5714590523533778, rel=1e-9)
    assert value[1].item() == pytest.approx(5 * 0.021601, rel=1e-4) and value[2] == INF
    for sure in (0.0, 1.0):
        assert closed_forms.kl(D.Binomial(3, t(0.3)), D.Binomial(5, t(sure))) == INF


def enough_digits(*shapes):
    """Twice those of the largest shape, whose log Γ cancels, and 80 more."""
    return 80 + int(2 * max(abs(math.log10(x)) for x in shapes))


def gamma_kl_by_mpmath(a, b, c, d):
    """KL(Gamma(a, b)‖Gamma(c, d)) from its definition."""
    with mp.workdps(enough_digits(a, b, c, d)):
        a, b, c, d = map(mp.mpf, (a, b, c, d))
        logs = mp.loggamma(c) - mp.loggamma(a) + c * mp.log(b / d)
        return float((a - c) * mp.digamma(a) + logs + a * (d - b) / b)


def dirichlet_kl_by_mpmath(p, q):
    with mp.workdps(enough_digits(*p, *q)):
        p, q = [[mp.mpf(x) for x in one] for one in (p, q)]
        total, log = mp.digamma(sum(p)), mp.loggamma
        terms = (
            log(y) - log(x) + (x - y) * (mp.digamma(x) - total) for x, y in zip(p, q, strict=True)
        )
        return float(log(sum(p)) - log(sum(q)) + sum(terms))


@pytest.mark.sweep(8)
@pytest.mark.parametrize("ratio", [1e12, 1e16, 1e17, 1e20, 1e60, 1e200])
@pytest.mark.parametrize("shape", [1e-6, 0.3, 50.0])
def test_shapes_of_any_ratio(shape, ratio):
    """q's shape is not computed as p + (q − p), which is 0 for ratios above 1e16 and gave NaN."""

    def wide(*numbers):
        return torch.tensor(numbers, dtype=torch.float64)

    for a, b in ((shape, shape * ratio), (shape * ratio, shape)):
        p, q = D.Gamma(wide(a), wide(2.0)), D.Gamma(wide(b), wide(3.0))
        assert closed_forms.kl(p, q).item() == pytest.approx(
            gamma_kl_by_mpmath(a, 2, b, 3), rel=1e-9
        )
        for first, second in (((a, 1.0), (b, 1.0)), ((a, 2.0, 0.5), (b, 1.0, 3.0))):
            p, q = D.Dirichlet(wide(*first)), D.Dirichlet(wide(*second))
            value = dirichlet_kl_by_mpmath(first, second)
            assert closed_forms.kl(p, q).item() == pytest.approx(value, rel=1e-9)
        for alpha in (0.5, 0.99, 2.0):
            p, q = D.Gamma(wide(a), wide(2.0)), D.Gamma(wide(b), wide(2.0))
            assert not closed_forms.renyi(p, q, alpha=alpha).isnan().any()
