"""Closed forms: every pair against quadrature or the sum itself, and where torch's are wrong."""

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
import torch.distributions as D

from kullback.exact import InverseGaussian, LinearGaussian, closed_forms, quadrature, tables
from kullback.exact.families import crossed

INF, LN2 = math.inf, math.log(2)


def t(*values, dtype=torch.float64):
    return torch.tensor(values if len(values) > 1 else values[0], dtype=dtype)


# one distribution as p, another as q, and a box that holds p's mass
SCALAR = {
    "Normal": (D.Normal(t(0.3), t(1.2)), D.Normal(t(-0.3), t(0.8)), (-14, 14)),
    "Laplace": (D.Laplace(t(0.3), t(0.7)), D.Laplace(t(-0.3), t(1.1)), (-30, 30)),
    "Gumbel": (D.Gumbel(t(0.2), t(0.9)), D.Gumbel(t(-0.2), t(1.3)), (-4, 38)),
    "Cauchy": (D.Cauchy(t(0.3), t(0.7)), D.Cauchy(t(-0.3), t(1.1)), None),
    "Gamma": (D.Gamma(t(3.0), t(1.7)), D.Gamma(t(2.0), t(0.7)), (0, 30)),
    "InverseGamma": (D.InverseGamma(t(9.0), t(8.0)), D.InverseGamma(t(8.0), t(9.0)), (0.01, 60)),
    "Exponential": (D.Exponential(t(1.3)), D.Exponential(t(0.6)), (0, 30)),
    "Weibull": (D.Weibull(t(1.3), t(2.0)), D.Weibull(t(0.6), t(3.0)), (0, 12)),
    "HalfNormal": (D.HalfNormal(t(0.8)), D.HalfNormal(t(1.8)), (0, 9)),
    "Beta": (D.Beta(t(3.0), t(4.0)), D.Beta(t(2.0), t(3.0)), (0, 1)),
    "ContinuousBernoulli": (D.ContinuousBernoulli(t(0.3)), D.ContinuousBernoulli(t(0.6)), (0, 1)),
    "Uniform": (D.Uniform(t(0.2), t(0.7)), D.Uniform(t(-1.0), t(2.0)), (0.2, 0.7)),
    "Pareto": (D.Pareto(t(0.1), t(30.0)), D.Pareto(t(0.05), t(2.5)), (0.1, 0.4)),
    "VonMises": (D.VonMises(t(0.3), t(2.0)), D.VonMises(t(-1.0), t(0.7)), (-math.pi, math.pi)),
    "InverseGaussian": (
        InverseGaussian(t(1.0), t(9.0)),
        InverseGaussian(t(1.4), t(5.0)),
        (0.01, 12),
    ),
}
ONE_SCALAR = sorted(
    (row.p, row.q)
    for row in closed_forms.pairs()
    if row.quantity == "kl" and row.p in SCALAR and row.q in SCALAR and "inf" not in row.source
)


def density(distribution):
    """The log density of a one-dimensional family at nodes [n, 1], free of range checks."""
    distribution._validate_args = False
    return lambda z: distribution.log_prob(z[:, 0])


def smooth_grid(lower, upper, *, kinks=(-0.3, 0.3)):
    """Nodes and log weights that also integrate log singularities at the ends, and the two kinks.

    On each piece x = a + (b − a)·u³/(u³ + (1 − u)³), which flattens whatever the ends do.
    """
    edges = sorted({lower, upper, *(k for k in kinks if lower < k < upper)})
    base, log_base = quadrature.grid(0.0, 1.0, nodes=150)
    share = base**3 / (base**3 + (1 - base) ** 3)
    slope = 3 * (base * (1 - base)) ** 2 / (base**3 + (1 - base) ** 3) ** 2
    pieces = [
        (a + (b - a) * share, log_base + ((b - a) * slope[:, 0]).log())
        for a, b in itertools.pairwise(edges)
    ]
    return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))


@pytest.mark.sweep(4)
@pytest.mark.parametrize(("first", "second"), ONE_SCALAR)
def test_one_dimensional_pairs_against_quadrature(first, second):
    p, q, box = SCALAR[first][0], SCALAR[second][1], SCALAR[first][2]
    value = closed_forms.kl(p, q).item()
    if "Cauchy" in (first, second):  # a tail too heavy for a box
        value_at = lambda x: torch.tensor([[x]], dtype=torch.float64)  # noqa: E731
        log_p, log_q = density(p), density(q)

        def integrand(x):
            z = value_at(x)
            return (log_p(z).exp() * (log_p(z) - log_q(z))).item()

        truth = scipy.integrate.quad(integrand, -INF, INF)[0]
        assert value == pytest.approx(truth, rel=2e-8)
        return
    points, log_weights = smooth_grid(*box)
    log_p, log_q = density(p)(points), density(q)(points)
    truth = ((log_p + log_weights).exp() * (log_p - log_q)).sum().item()
    # torch's own von Mises normaliser is a polynomial good to 2e-7
    assert value == pytest.approx(truth, rel=1e-6 if first == "VonMises" else 1e-9)


@pytest.mark.parametrize("name", SCALAR)
def test_entropies_against_quadrature(name):
    p, _, box = SCALAR[name]
    if box is None or name == "InverseGaussian":
        return
    points, log_weights = smooth_grid(*box)
    log_p = density(p)(points)
    truth = -((log_p + log_weights).exp() * log_p).sum().item()
    assert closed_forms.entropy(p).item() == pytest.approx(truth, rel=1e-6, abs=1e-9)


def support_sum(p, q, top=400):
    k = torch.arange(top + 1.0, dtype=torch.float64)
    p._validate_args = q._validate_args = False
    log_p, log_q = p.log_prob(k), q.log_prob(k)
    return torch.where(log_p > -700, log_p.exp() * (log_p - log_q), 0).sum().item()


DISCRETE = [
    (D.Bernoulli(t(0.3)), D.Bernoulli(t(0.6)), 1),
    (D.Bernoulli(logits=t(-1.0)), D.Bernoulli(t(0.6)), 1),
    (D.Binomial(7, t(0.3)), D.Binomial(7, t(0.6)), 7),
    (D.Geometric(t(0.3)), D.Geometric(t(0.6)), 400),
    (D.Geometric(logits=t(-0.5)), D.Geometric(t(0.2)), 400),
    (D.NegativeBinomial(t(3.5), t(0.3)), D.NegativeBinomial(t(3.5), t(0.6)), 400),
    (D.Poisson(t(3.0)), D.Poisson(t(5.0)), 150),
    (D.Bernoulli(t(0.3)), D.Poisson(t(0.6)), 1),
    (D.Categorical(t(0.2, 0.3, 0.5)), D.Categorical(logits=t(0.0, 1.0, 2.0)), 2),
]


@pytest.mark.parametrize(("p", "q", "top"), DISCRETE)
def test_discrete_pairs_against_the_sum(p, q, top):
    assert closed_forms.kl(p, q).item() == pytest.approx(support_sum(p, q, top), rel=1e-12)


def test_multinomial_and_one_hot():
    p, q = D.Multinomial(2, t(0.2, 0.8)), D.Multinomial(2, t(0.6, 0.4))
    outcomes = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]], dtype=torch.float64)
    log_p, log_q = p.log_prob(outcomes), q.log_prob(outcomes)
    truth = (log_p.exp() * (log_p - log_q)).sum().item()
    assert closed_forms.kl(p, q).item() == pytest.approx(truth, rel=1e-12)
    assert closed_forms.kl(p, D.Multinomial(3, t(0.6, 0.4))) == INF
    one_hot = closed_forms.kl(D.OneHotCategorical(t(0.2, 0.8)), D.OneHotCategorical(t(0.6, 0.4)))
    assert one_hot.item() == pytest.approx(truth / 2, rel=1e-12)


def drawn(p, q, size=20_000, seed=0):
    """Mean and standard error of log p/q over draws of p, with a fixed seed and fixed n."""
    if isinstance(p, D.Wishart):
        x = wishart_draws(p, size, seed)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            x = p.sample((size,))
    terms = p.log_prob(x) - q.log_prob(x)
    return terms.mean(0), terms.std(0) / size**0.5


def wishart_draws(p, size, seed):
    """SciPy's draws; torch's sampler warns of singular ones."""
    rng = np.random.default_rng(seed)
    scale = p.covariance_matrix.reshape(-1, 2, 2)[0].numpy()
    rows = [scipy.stats.wishart(df, scale).rvs(size, rng) for df in p.df.reshape(-1).tolist()]
    return torch.from_numpy(np.stack(rows, 1)).reshape(size, *p.batch_shape, 2, 2)


def wishart(df, *rows):
    return D.Wishart(torch.as_tensor(df, dtype=torch.float64), t(*rows))


VECTORS = [
    (D.Dirichlet(t(2.0, 3.0, 4.0)), D.Dirichlet(t(1.0, 1.5, 5.0))),
    (wishart(5.0, (1.0, 0.2), (0.2, 2.0)), wishart(4.0, (2.0, 0.1), (0.1, 1.0))),
    (wishart([5.0, 6.0], (1.0, 0.2), (0.2, 2.0)), wishart(4.5, (2.0, 0.1), (0.1, 1.0))),
    (SCALAR["InverseGaussian"][0], SCALAR["InverseGaussian"][1]),
]


@pytest.mark.sweep(2)
@pytest.mark.parametrize(("p", "q"), VECTORS)
def test_vector_pairs_against_draws(p, q):
    mean, error = drawn(p, q)
    assert ((closed_forms.kl(p, q) - mean).abs() <= 4.5 * error).all()


def test_torch_is_wrong_for_batches_of_wisharts_and_we_are_not():
    one, other = VECTORS[1]
    batch = closed_forms.kl(*(d.expand((2,)) for d in (one, other)))
    single = closed_forms.kl(one, other)
    assert single.item() == pytest.approx(D.kl_divergence(one, other).item(), rel=1e-9)
    torch.testing.assert_close(batch, single.expand(2))


def gaussians(seed, n=4, rank=2):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    loc, std = normal(3, n), normal(3, n).exp()
    tril = normal(3, n, n).tril(-1) + torch.diag_embed(normal(3, n).exp())
    return {
        "diagonal": D.Independent(D.Normal(loc, std), 1),
        "full": D.MultivariateNormal(loc, scale_tril=tril),
        "low rank": D.LowRankMultivariateNormal(loc, normal(3, n, rank), normal(3, n).exp()),
    }


def dense(d):
    """The same Gaussian with its full covariance written out."""
    if isinstance(d, D.Independent):
        return D.MultivariateNormal(d.mean, torch.diag_embed(d.variance))
    return D.MultivariateNormal(d.mean, d.covariance_matrix)


@pytest.mark.parametrize("first", gaussians(0))
@pytest.mark.parametrize("second", gaussians(0))
def test_gaussians_of_every_kind_agree_with_their_full_covariances(first, second):
    p, q = gaussians(1)[first], gaussians(2)[second]
    truth = D.kl_divergence(dense(p), dense(q))
    torch.testing.assert_close(closed_forms.kl(p, q), truth, rtol=1e-10, atol=1e-12)
    assert closed_forms.kl(p, p).abs().max() < 1e-13
    if "low rank" not in (first, second):
        order = 0.4
        points = closed_forms.renyi(p, q, alpha=order)
        torch.testing.assert_close(points, bhattacharyya(dense(p), dense(q), order))


def bhattacharyya(p, q, order):
    """Renyi by its definition: log of the integral of a product of powers, from precisions."""
    a, b = p.precision_matrix * order, q.precision_matrix * (1 - order)
    total = a + b
    pull = (a @ p.loc[..., None]) + (b @ q.loc[..., None])
    at = [(d.loc[..., None, :] @ m @ d.loc[..., None])[..., 0, 0] for d, m in ((p, a), (q, b))]
    middle = (pull.mT @ torch.linalg.solve(total, pull))[..., 0, 0]
    dets = [torch.logdet(m) for m in (p.precision_matrix, q.precision_matrix, total)]
    log_integral = 0.5 * (order * dets[0] + (1 - order) * dets[1] - dets[2] + middle - sum(at))
    return log_integral / (order - 1)


def test_low_rank_in_float32_keeps_its_digits_where_woodbury_cancels():
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(50, 3, generator=generator) * 30
    p = D.LowRankMultivariateNormal(torch.zeros(50), factor, torch.full((50,), 1e-2))
    q = D.LowRankMultivariateNormal(torch.zeros(50), factor * 1.01, torch.full((50,), 1e-2))
    wide = [dense_double(d) for d in (p, q)]
    truth = closed_forms.kl(*wide).item()
    assert closed_forms.kl(p, q).item() == pytest.approx(truth, rel=1e-4)


def dense_double(d):
    return D.LowRankMultivariateNormal(d.loc.double(), d.cov_factor.double(), d.cov_diag.double())


def test_independent_and_shared_transforms():
    p = D.Independent(D.Laplace(t(0.0, 1.0), t(1.0, 2.0)), 1)
    q = D.Independent(D.Laplace(t(1.0, 1.0), t(1.0, 1.0)), 1)
    parts = closed_forms.kl(p.base_dist, q.base_dist)
    torch.testing.assert_close(closed_forms.kl(p, q), parts.sum(-1))
    normal_p, normal_q = D.Normal(t(0.0), t(1.0)), D.Normal(t(1.0), t(2.0))
    truth = closed_forms.kl(normal_p, normal_q)
    log_p, log_q = D.LogNormal(t(0.0), t(1.0)), D.LogNormal(t(1.0), t(2.0))
    assert closed_forms.kl(log_p, log_q) == truth
    assert closed_forms.renyi(log_p, log_q, alpha=0.5) == closed_forms.renyi(
        normal_p, normal_q, alpha=0.5
    )
    tanh = [D.TransformedDistribution(n, [D.TanhTransform()]) for n in (normal_p, normal_q)]
    assert closed_forms.kl(*tanh) == truth


def test_a_transform_that_cannot_be_inverted_is_refused():
    """|x| folds both halves together: torch returns the base's KL, which is only an upper bound."""
    p, q = (
        D.TransformedDistribution(D.Normal(t(m), t(1.0)), D.AbsTransform()) for m in (2.0, -2.0)
    )
    assert D.kl_divergence(p, q).item() == pytest.approx(8.0)  # the truth is 0
    with pytest.raises(TypeError, match="the same invertible transforms"):
        closed_forms.kl(p, q)
    half = closed_forms.kl(D.HalfCauchy(t(2.0)), D.HalfCauchy(t(1.0)))
    assert half == closed_forms.kl(D.Cauchy(t(0.0), t(2.0)), D.Cauchy(t(0.0), t(1.0)))


def f(*values):
    return t(*values, dtype=torch.float32)


SMALL = 2.0**-13
EDGES = [  # p, q, truth in float32; what torch says is in the comment
    (D.Normal(f(0.0), f(1.0)), D.Normal(f(0.0), f(1e-30)), INF),  # nan
    (D.Normal(f(0.0), f(1e-30)), D.Normal(f(0.0), f(1.0)), 30 * math.log(10) - 0.5),  # inf
    (D.Normal(f(0.0), f(1.0)), D.Normal(f(0.0), f(1 + SMALL)), SMALL**2 - 5 / 3 * SMALL**3),
    (D.HalfNormal(f(1.0)), D.HalfNormal(f(1e-30)), INF),  # nan
    (D.Exponential(f(1e-30)), D.Exponential(f(1e30)), INF),  # nan
    (D.Exponential(f(1.0)), D.Exponential(f(1 + SMALL)), SMALL**2 / 2 - SMALL**3 / 3),  # 0
    (D.Laplace(f(0.0), f(1e30)), D.Laplace(f(0.0), f(1e-30)), INF),  # nan
    (D.Cauchy(f(0.0), f(1e-25)), D.Cauchy(f(0.0), f(1e-25)), 0.0),  # nan
    (D.Cauchy(f(0.0), f(1e18)), D.Cauchy(f(0.0), f(1e-18)), 36 * math.log(10) - 2 * LN2),
    (D.Gamma(f(1.0), f(1e-30)), D.Gamma(f(1.0), f(1e30)), INF),  # nan
    (D.Gamma(f(1000.0), f(3.0)), D.Gamma(f(1000.5), f(3.0)), 1.2504e-4),
    (D.Binomial(3, f(1.0)), D.Binomial(3, f(0.5)), 3 * LN2),  # -inf
    (D.Binomial(3, f(0.5)), D.Binomial(3, f(0.0)), INF),  # 21.8
    (D.Binomial(3, f(1.0)), D.Binomial(3, f(1.0)), 0.0),  # nan
    (D.Binomial(4, f(0.5)), D.Binomial(3, f(0.5)), INF),
    (D.Binomial(2, f(0.0)), D.Binomial(3, f(0.5)), 3 * LN2),
    (D.Bernoulli(f(0.0)), D.Bernoulli(f(0.5)), LN2),
    (D.Bernoulli(f(0.5)), D.Bernoulli(f(0.0)), INF),
    (D.Bernoulli(logits=f(-INF)), D.Bernoulli(logits=f(0.0)), LN2),
    (D.Geometric(f(1.0)), D.Geometric(f(1.0)), 0.0),  # inf
    (D.Geometric(f(0.5)), D.Geometric(f(1.0)), INF),
    (D.Poisson(f(0.0)), D.Poisson(f(1.0)), 1.0),  # nan
    (D.Poisson(f(1.0)), D.Poisson(f(0.0)), INF),
    (D.Poisson(f(0.0)), D.Poisson(f(0.0)), 0.0),  # nan
    (D.ContinuousBernoulli(f(0.4)), D.Uniform(f(0.0), f(1.0)), 0.00682204916655837),  # inf
    (D.ContinuousBernoulli(f(0.4)), D.Uniform(f(0.5), f(3.0)), INF),
    (D.Uniform(f(0.0), f(1.0)), D.ContinuousBernoulli(f(0.4)), 0.00684072110385258),  # inf
    (D.Uniform(f(-1.0), f(0.5)), D.ContinuousBernoulli(f(0.4)), INF),
    (D.Uniform(f(1.0), f(2.0)), D.Pareto(f(1e-10), f(8.0)), 185.604015147923),  # inf
    (D.VonMises(f(0.0), f(1e4)), D.VonMises(f(0.0), f(1.0001e4)), 2.5e-9),
    (D.Uniform(f(0.0), f(1.0)), D.Uniform(f(0.5), f(2.0)), INF),
    (D.Categorical(f(0.5, 0.5)), D.Categorical(f(1e-10, 1.0)), 5 * math.log(10) - LN2),  # 7.3
    (D.Categorical(f(0.5, 0.5, 0.0)), D.Categorical(f(0.5, 0.0, 0.5)), INF),
    (D.Categorical(f(0.5, 0.5, 0.0)), D.Categorical(logits=f(0.0, 0.0, 0.0)), math.log(1.5)),
]


@pytest.mark.parametrize(("p", "q", "truth"), EDGES)
def test_edges(p, q, truth):
    assert closed_forms.kl(p, q).item() == pytest.approx(truth, rel=2e-4, abs=1e-12)


@pytest.mark.parametrize(
    ("family", "parameters"),
    [
        (D.Normal, [(0.0, 1.0), (0.0, 1.0)]),
        (D.Laplace, [(0.0, 1.0), (0.0, 1.0)]),
        (D.Bernoulli, [(0.0,), (0.5,)]),
        (D.Bernoulli, [(1.0,), (0.0,)]),
        (D.Binomial, [(3, 1.0), (3, 0.5)]),
        (D.Poisson, [(0.0,), (1.0,)]),
        (D.Poisson, [(1.0,), (0.0,)]),
        (D.Cauchy, [(0.0, 1.0), (0.0, 1.0)]),
        (D.Exponential, [(2.0,), (2.0,)]),
        (D.Gamma, [(2.0, 1.0), (2.0, 1.0)]),
    ],
)
def test_gradients_at_the_edges_are_finite(family, parameters):
    """p = q, and probabilities of 0 and 1."""
    leaves = [[f(v).requires_grad_() for v in row] for row in parameters]
    value = closed_forms.kl(family(*leaves[0]), family(*leaves[1]))
    flat = [leaf for row in leaves for leaf in row]
    gradients = torch.autograd.grad(value, flat, allow_unused=True)
    for gradient in gradients:
        assert gradient is None or torch.isfinite(gradient).all()
    if parameters[0] == parameters[1]:
        assert value.item() == pytest.approx(0.0, abs=1e-7)
        assert all(g.abs().item() < 1e-6 for g in gradients)


def test_tiny_scales_overflow_with_a_sign_and_never_nan():
    scale = f(1e-30).requires_grad_()
    value = closed_forms.kl(D.Normal(f(0.0), f(1.0)), D.Normal(f(0.0), scale))
    (gradient,) = torch.autograd.grad(value, scale)
    assert (value, gradient) == (INF, -INF)


def test_masked_logits_have_a_finite_gradient():
    p, q = f(0.0, 1.0, -INF).requires_grad_(), f(0.0, 2.0, -INF).requires_grad_()
    value = closed_forms.kl(D.Categorical(logits=p), D.Categorical(logits=q))
    truth = tables.kl(p, q, form="logits")
    assert value.item() == pytest.approx(truth.item(), rel=1e-6)
    ours, theirs = (torch.autograd.grad(v, (p, q), retain_graph=True) for v in (value, truth))
    for mine, table in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, table)
        assert torch.isfinite(mine).all()


FAMILIES = [  # (build, parameters of p, parameters of q): differentiable in all of them
    (D.Normal, (0.3, 1.2), (-0.3, 0.8)),
    (D.Laplace, (0.3, 0.7), (-0.3, 1.1)),
    (D.Cauchy, (0.3, 0.7), (-3.0, 1.1)),
    (D.Gamma, (3.0, 1.7), (2.0, 0.7)),
    (D.Beta, (3.0, 1.7), (2.0, 0.7)),
    (D.InverseGamma, (3.0, 1.7), (2.0, 0.7)),
    (D.Weibull, (3.0, 1.7), (2.0, 0.7)),
    (D.VonMises, (0.3, 1.7), (-1.0, 0.7)),
    (InverseGaussian, (1.0, 1.7), (1.5, 0.7)),
    (D.Bernoulli, (0.3,), (0.6,)),
    (D.Geometric, (0.3,), (0.6,)),
    (D.Poisson, (0.3,), (0.6,)),
]


@pytest.mark.sweep(3)
@pytest.mark.parametrize(("build", "first", "second"), FAMILIES)
def test_gradients_by_finite_differences_and_laws(build, first, second):
    leaves = [t(v).requires_grad_() for v in (*first, *second)]
    size = len(first)

    def kl(*values):
        return closed_forms.kl(build(*values[:size]), build(*values[size:]))

    assert torch.autograd.gradcheck(kl, leaves)
    p = build(*leaves[:size])
    assert closed_forms.kl(p, p).item() == pytest.approx(0.0, abs=1e-14)


RENYI = [
    ("Normal", 0.5),
    ("Normal", 1.3),
    ("Exponential", 0.5),
    ("Exponential", 3.0),
    ("Gamma", 2.0),
    ("Beta", 0.5),
    ("Beta", 2.0),
    ("InverseGamma", 0.7),
]


@pytest.mark.parametrize(("name", "order"), RENYI)
def test_renyi_against_quadrature(name, order):
    p, q, box = SCALAR[name]
    points, log_weights = smooth_grid(*box)
    powers = order * density(p)(points) + (1 - order) * density(q)(points) + log_weights
    truth = torch.logsumexp(powers, 0) / (order - 1)
    assert closed_forms.renyi(p, q, alpha=order).item() == pytest.approx(truth.item(), rel=1e-8)


def test_renyi_of_tables_vectors_and_its_limits():
    p, q = D.Poisson(t(3.0)), D.Poisson(t(5.0))
    k = torch.arange(200.0, dtype=torch.float64)
    truth = torch.logsumexp(2.5 * p.log_prob(k) - 1.5 * q.log_prob(k), 0) / 1.5
    assert closed_forms.renyi(p, q, alpha=2.5).item() == pytest.approx(truth.item(), rel=1e-12)
    assert closed_forms.renyi(D.Poisson(t(0.0)), q, alpha=0.5).item() == pytest.approx(5.0)
    bernoulli = closed_forms.renyi(D.Bernoulli(t(0.3)), D.Bernoulli(t(0.6)), alpha=2)
    table = tables.renyi(t(0.7, 0.3), t(0.4, 0.6), alpha=2)
    assert bernoulli.item() == pytest.approx(table.item(), rel=1e-14)
    dirichlet = closed_forms.renyi(D.Dirichlet(t(3.0, 4.0)), D.Dirichlet(t(2.0, 3.0)), alpha=2)
    beta = closed_forms.renyi(D.Beta(t(3.0), t(4.0)), D.Beta(t(2.0), t(3.0)), alpha=2)
    assert dirichlet.item() == pytest.approx(beta.item(), rel=1e-12)
    for p, q in ((SCALAR[n][0], SCALAR[n][1]) for n in ("Normal", "Gamma", "Beta", "Exponential")):
        near = closed_forms.renyi(p, q, alpha=1 + 1e-6).item()
        assert near == pytest.approx(closed_forms.kl(p, q).item(), rel=1e-4)
        assert closed_forms.renyi(p, q, alpha=1) == closed_forms.kl(p, q)
    wide, narrow = D.Normal(t(0.0), t(2.0)), D.Normal(t(0.0), t(1.0))
    assert closed_forms.renyi(wide, narrow, alpha=2) == INF  # the integral of p²/q diverges


def test_every_infinite_pair_is_infinite_and_torch_agrees():
    examples = {name: row[0] for name, row in SCALAR.items()}
    examples |= {"Poisson": D.Poisson(t(1.0)), "Bernoulli": D.Bernoulli(t(0.5))}
    examples["Binomial"] = D.Binomial(3, t(0.5))
    for p, others in crossed.INFINITE.items():
        for q in others:
            pair = examples[p.__name__], examples[q.__name__]
            assert closed_forms.kl(*pair) == INF
            assert D.kl_divergence(*pair) == INF


def test_cross_entropy_is_entropy_plus_kl():
    p, q, box = SCALAR["Gamma"]
    points, log_weights = smooth_grid(*box)
    truth = -((density(p)(points) + log_weights).exp() * density(q)(points)).sum()
    assert closed_forms.cross_entropy(p, q).item() == pytest.approx(truth.item(), rel=1e-10)
    masked = D.Categorical(probs=f(0.5, 0.5, 0.0))
    assert closed_forms.entropy(masked).item() == pytest.approx(LN2, rel=1e-6)
    assert closed_forms.cross_entropy(masked, D.Categorical(f(0.5, 0.0, 0.5))) == INF


def test_the_inverse_gaussian_is_scipys():
    ours, x = SCALAR["InverseGaussian"][0], t(0.3, 1.0, 4.0)
    theirs = scipy.stats.invgauss(mu=1.0 / 9.0, scale=9.0)
    torch.testing.assert_close(ours.log_prob(x), torch.from_numpy(theirs.logpdf(x.numpy())))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = ours.sample((20_000,)).numpy()
    assert scipy.stats.kstest(draws, theirs.cdf).pvalue > 1e-4
    assert ours.expand((2, 3)).sample((4,)).shape == (4, 2, 3)
    moments = InverseGaussian(t(2.0), t(9.0))
    mean, variance = scipy.stats.invgauss(mu=2.0 / 9.0, scale=9.0).stats()
    assert (moments.mean.item(), moments.variance.item()) == pytest.approx((mean, variance))


def test_linear_gaussian_gap_is_the_kl_to_the_posterior():
    """MATH 2.1 to the last digits: log p(x) = ELBO(q) + KL(q || posterior), for any Gaussian q."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    model = LinearGaussian(weight, torch.arange(5.0).double(), torch.full((5,), 0.7).double())
    x = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    q = D.MultivariateNormal(t(0.3, -0.2), scale_tril=t((0.5, 0.0), (0.3, 0.8)))
    gap = closed_forms.kl(q, model.posterior(x))
    torch.testing.assert_close(model.elbo(x, q) + gap, model.log_evidence(x), rtol=1e-13, atol=0)
    z = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    bayes = model.log_joint(x, z) - model.posterior(x).log_prob(z)
    torch.testing.assert_close(bayes, model.log_evidence(x), rtol=1e-13, atol=0)


N01 = D.Normal(t(0.0), t(1.0))
REFUSED = [
    (lambda: closed_forms.kl(N01, 3.0), TypeError, "q: expected Distribution; got float"),
    (
        lambda: closed_forms.kl(N01, D.StudentT(t(3.0))),
        TypeError,
        "p and q: expected a pair whose kl",
    ),
    (
        lambda: closed_forms.kl(D.Dirichlet(t(1.0, 1.0)), D.Dirichlet(t(1.0, 1.0, 1.0))),
        ValueError,
        "the same event shape",
    ),
    (
        lambda: closed_forms.kl(D.Binomial(3, t(0.5)), D.Binomial(2_000_000, t(0.5))),
        ValueError,
        "total_count",
    ),
    (
        lambda: closed_forms.kl(
            D.NegativeBinomial(t(3.0), t(0.5)), D.NegativeBinomial(t(4.0), t(0.5))
        ),
        ValueError,
        "total_count: expected the same",
    ),
    (
        lambda: closed_forms.kl(D.Categorical(t(0.5, 0.5)), D.Categorical(t(0.2, 0.3, 0.5))),
        ValueError,
        "p and q: expected the same outcomes",
    ),
    (
        lambda: closed_forms.kl(D.Weibull(t(1.0), t(2.0)), D.LogNormal(t(0.0), t(1.0))),
        TypeError,
        "the same invertible transforms",
    ),
    (lambda: closed_forms.entropy(D.Poisson(t(1.0))), TypeError, "whose entropy has a closed form"),
    (lambda: closed_forms.entropy(InverseGaussian(t(1.0), t(1.0))), TypeError, "closed form"),
    (lambda: closed_forms.entropy(1.0), TypeError, "p: expected Distribution"),
    (lambda: closed_forms.renyi(N01, N01, alpha=0), ValueError, "alpha: expected a finite order"),
    (
        lambda: closed_forms.renyi(SCALAR["Weibull"][0], SCALAR["Weibull"][1], alpha=2),
        TypeError,
        "same",
    ),
    (lambda: LinearGaussian(t(1.0), t(1.0), t(1.0)), ValueError, "weight: expected a matrix"),
    (
        lambda: LinearGaussian(torch.ones(2, 1), t(1.0), t(1.0)),
        ValueError,
        "bias: expected a vector",
    ),
    (
        lambda: LinearGaussian(torch.ones(1, 1), torch.ones(1), t(0.0)),
        ValueError,
        "scale: expected",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), REFUSED)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()
