"""log_density: SciPy's masses and densities, exact zeros, gradients, and mixtures of supports."""

import math

import pytest
import scipy.stats
import torch
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Exponential,
    Geometric,
    Independent,
    MixtureSameFamily,
    Multinomial,
    NegativeBinomial,
    OneHotCategorical,
    Poisson,
    Uniform,
)

from kullback.sampled import kl
from kullback.sampled.distributions import log_density

INF = math.inf
ZERO, HALF, ONE = (torch.tensor(v, dtype=torch.float64) for v in (0.0, 0.5, 1.0))
TABLE = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
LOG2 = math.log(2.0)


@pytest.mark.parametrize(
    ("q", "x", "truth"),
    [
        (Bernoulli(ZERO), [0.0, 1.0], [0.0, -INF]),
        (Bernoulli(ONE), [0.0, 1.0], [-INF, 0.0]),
        (Bernoulli(logits=ZERO - INF), [0.0, 1.0], [0.0, -INF]),
        (Bernoulli(logits=ZERO - 800.0), [0.0, 1.0], [0.0, -800.0]),
        (Bernoulli(HALF), [0.0, 2.0], [-LOG2, -INF]),
        (Binomial(3, ZERO), [0.0, 1.0, 4.0], [0.0, -INF, -INF]),
        (Binomial(3, ONE), [2.0, 3.0], [-INF, 0.0]),
        (NegativeBinomial(2 * ONE, ZERO), [0.0, 1.0], [0.0, -INF]),
        (Geometric(ONE), [0.0, 1.0], [0.0, -INF]),
        (Poisson(ZERO), [0.0, 1.0], [0.0, -INF]),
        (Categorical(TABLE), [0, 1, 2], [-LOG2, -LOG2, -INF]),
        (Categorical(logits=TABLE.log()), [0, 2], [-LOG2, -INF]),
        (OneHotCategorical(TABLE), torch.eye(3).tolist(), [-LOG2, -LOG2, -INF]),
        (Multinomial(2, TABLE), [[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]], [-LOG2, -INF]),
        (
            Independent(Bernoulli(torch.stack([ZERO, HALF])), 1),
            [[0.0, 1.0], [1.0, 1.0]],
            [-LOG2, -INF],
        ),
        (
            MixtureSameFamily(
                Categorical(TABLE),
                Uniform(torch.arange(3.0).double(), torch.arange(1.0, 4).double()),
            ),
            [0.5, 1.5, 2.5, 3.5],
            [-LOG2, -LOG2, -INF, -INF],
        ),
        (Exponential(ONE), [-1.0, 2.0], [-INF, -2.0]),
    ],
)
def test_zero_mass_is_minus_infinity(q, x, truth):
    x = torch.tensor(x, dtype=torch.float64)
    torch.testing.assert_close(
        log_density(q, x), torch.tensor(truth, dtype=torch.float64), rtol=1e-14, atol=1e-15
    )


@pytest.mark.parametrize("p", [1e-3, 0.3, 0.999])
def test_against_scipy(p):
    x = torch.arange(6.0, dtype=torch.float64)
    n, mass = 5, torch.tensor(p, dtype=torch.float64)
    for q, truth in (
        (Binomial(n, mass), scipy.stats.binom.logpmf(x, n, p)),
        (Binomial(n, logits=torch.logit(mass)), scipy.stats.binom.logpmf(x, n, p)),
        (NegativeBinomial(2.5 * ONE, 1 - mass), scipy.stats.nbinom.logpmf(x, 2.5, p)),
        (Bernoulli(mass.expand(2)), scipy.stats.bernoulli.logpmf([0, 1], p)),
    ):
        found = log_density(q, x[: len(truth)])
        torch.testing.assert_close(found, torch.from_numpy(truth), rtol=1e-11, atol=1e-13)


def test_the_gradient_is_the_score():
    """d/dp log Bernoulli(x; p) = x/p − (1 − x)/(1 − p), also beside an outcome of no mass."""
    probs = torch.tensor([0.2, 0.7], dtype=torch.float64, requires_grad=True)
    log_density(Bernoulli(probs), torch.tensor([1.0, 0.0]).double()).sum().backward()
    torch.testing.assert_close(probs.grad, torch.tensor([5.0, -1 / 0.3]).double())
    zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    log_density(Bernoulli(zero), torch.zeros((), dtype=torch.float64)).backward()
    assert zero.grad == -1.0


@pytest.mark.parametrize("estimator", ["k1", "k3", "best"])
def test_a_belief_without_mass_costs_infinity(estimator):
    pairs = [
        (Bernoulli(HALF), Bernoulli(ZERO)),
        (Categorical(torch.full((3,), 1 / 3)), Categorical(TABLE)),
        (Binomial(4, HALF), Binomial(4, ONE)),
    ]
    for p, q in pairs:
        seed = torch.Generator().manual_seed(0)
        found = kl(p, q, draws=100, estimator=estimator, generator=seed)
        assert (found.value, found.standard_error) == (INF, INF)
    seed = torch.Generator().manual_seed(0)
    sure = kl(Bernoulli(ONE), Bernoulli(0.25 * ONE), estimator="k1", generator=seed)
    assert sure.value == pytest.approx(math.log(4.0), rel=1e-14)


@pytest.mark.parametrize("mean", [1e3, 1e9, 1e12, 1e15])
def test_masses_of_large_counts_do_not_cancel(mean):
    """Against 50 digits; by differences of log-gamma values Poisson(1e15) was off by 1 nat."""
    import mpmath

    rate = torch.tensor(mean, dtype=torch.float64)
    counts = torch.tensor([mean, mean + math.sqrt(mean).__floor__(), mean / 2], dtype=rate.dtype)
    laws = {
        "poisson": Poisson(rate),
        "binomial": Binomial(2 * rate, HALF),
        "negative binomial": NegativeBinomial(rate, HALF),
    }
    with mpmath.workdps(50):
        m = mpmath.mpf(mean)
        log2, lgamma = mpmath.log(2), mpmath.loggamma
        truths = {
            "poisson": lambda x: x * mpmath.log(m) - m - lgamma(x + 1),
            "binomial": lambda x: (
                lgamma(2 * m + 1) - lgamma(x + 1) - lgamma(2 * m - x + 1) - 2 * m * log2
            ),
            "negative binomial": lambda x: (
                lgamma(m + x) - lgamma(x + 1) - lgamma(m) - (m + x) * log2
            ),
        }
        for name, law in laws.items():
            truth = [float(truths[name](mpmath.mpf(x))) for x in counts.tolist()]
            assert log_density(law, counts).tolist() == pytest.approx(truth, rel=1e-12), name


def test_a_law_without_a_density_is_named():
    """torch has no density of |x|: its error said nothing."""
    folded = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(ZERO, ONE), [torch.distributions.AbsTransform()]
    )
    with pytest.raises(TypeError, match="with a log density; got TransformedDistribution"):
        kl(folded, Exponential(ONE))
