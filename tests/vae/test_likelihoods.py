"""Likelihoods sum to one over every outcome of a tiny world, and draw what they say."""

import math

import mpmath
import pytest
import torch

from kullback.vae.architecture import LIKELIHOODS, choose
from kullback.vae.likelihoods import (
    Bernoulli,
    Categorical,
    DiscretisedLogistics,
    Gaussian,
    log_mass,
)


def outcomes(shape, levels):
    values = torch.arange(levels, dtype=torch.float64)
    grid = torch.cartesian_prod(*[values] * math.prod(shape))
    return grid.reshape(-1, *shape)


def parameters(likelihood, places, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (1, likelihood.channels, places)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


CASES = {
    "bernoulli": (Bernoulli((1, 2, 2)), (1, 2, 2), 2),
    "bernoulli vector": (Bernoulli((3,)), (3,), 2),
    "categorical": (Categorical((2, 1, 2), levels=3), (2, 1, 2), 3),
    "logistics": (DiscretisedLogistics((1, 1, 2), components=3, levels=5), (1, 1, 2), 5),
    "logistics colour": (DiscretisedLogistics((3, 1, 1), components=2, levels=6), (3, 1, 1), 6),
    "logistics vector": (DiscretisedLogistics((2,), components=2, levels=4), (2,), 4),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_probabilities_sum_to_one(name, scale):
    likelihood, shape, levels = CASES[name]
    x = outcomes(shape, levels)
    theta = parameters(likelihood, likelihood.event.places, scale).expand(len(x), -1, -1)
    total = likelihood.log_prob(theta, x).exp().sum().item()
    assert total == pytest.approx(1.0, abs=1e-12)


def test_logistics_with_256_levels_sum_to_one():
    likelihood = DiscretisedLogistics((1,), components=5)
    x = torch.arange(256.0, dtype=torch.float64).reshape(-1, 1)
    for seed in range(20):
        theta = parameters(likelihood, 1, 3.0, seed).expand(256, -1, -1)
        total = likelihood.log_prob(theta, x).exp().sum().item()
        assert total == pytest.approx(1.0, abs=1e-12)
        single = likelihood.log_prob(theta.float(), x).double().exp().sum().item()
        assert single == pytest.approx(1.0, abs=1e-4)


def test_log_mass_in_the_far_tail_matches_the_exact_difference():
    """σ(b) − σ(a) far from the mean, against mpmath."""
    mean, log_scale = (torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (0.9, -5.0))
    value, half = torch.full((1, 1, 1), -0.5, dtype=torch.float64), 1 / 255
    ours = log_mass(mean, log_scale, value, half).item()
    with mpmath.workdps(400):
        centre, width = mpmath.mpf(-0.5) - mpmath.mpf(0.9), mpmath.mpf(half)
        edges = [(centre + side * width) * mpmath.exp(5) for side in (-1, 1)]
        below, above = (1 / (1 + mpmath.exp(-edge)) for edge in edges)
        truth = float(mpmath.log(above - below))
    assert ours == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize("levels", [2, 256])
def test_log_mass_gradient(levels):
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    log_scale = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    value = torch.tensor([[-1.0, 1.0, 0.2, -0.4]], dtype=torch.float64).expand(2, 1, 4)
    half = 1 / (levels - 1)
    assert torch.autograd.gradcheck(lambda m, s: log_mass(m, s, value, half), (mean, log_scale))


@pytest.mark.parametrize("name", CASES)
def test_draws_have_the_enumerated_frequencies(name):
    likelihood, shape, levels = CASES[name]
    x = outcomes(shape, levels)
    theta = parameters(likelihood, likelihood.event.places)
    probability = likelihood.log_prob(theta.expand(len(x), -1, -1), x).exp()
    n = 40_000
    drawn = likelihood.sample(theta.expand(n, -1, -1), torch.Generator().manual_seed(1)).double()
    code = levels ** torch.arange(math.prod(shape) - 1, -1, -1)
    counts = torch.bincount((drawn.flatten(1) @ code.double()).long(), minlength=len(x))
    z = (counts - n * probability) / (n * probability * (1 - probability)).sqrt().clamp(min=1e-9)
    assert z[n * probability > 20].abs().max() <= 4.5


@pytest.mark.parametrize("name", ["bernoulli", "categorical"])
def test_means_are_the_enumerated_means(name):
    likelihood, shape, levels = CASES[name]
    x = outcomes(shape, levels)
    theta = parameters(likelihood, likelihood.event.places)
    probability = likelihood.log_prob(theta.expand(len(x), -1, -1), x).exp()
    truth = (probability.reshape(-1, *[1] * len(shape)) * x).sum(0)
    torch.testing.assert_close(likelihood.mean(theta)[0].double(), truth, rtol=1e-6, atol=1e-6)


def test_gaussian_is_torchs_normal():
    likelihood = Gaussian((2, 1, 2), log_sd=-0.3)
    theta = parameters(likelihood, 2).float()
    x = torch.randn(1, 2, 1, 2, generator=torch.Generator().manual_seed(3))
    truth = torch.distributions.Normal(theta.reshape(1, 4), math.exp(-0.3)).log_prob(x.flatten(1))
    torch.testing.assert_close(likelihood.log_prob(theta, x), truth.sum(-1))


def test_draws_axis_broadcasts():
    likelihood, shape, levels = CASES["logistics colour"]
    theta = torch.randn(4, 5, likelihood.channels, 1, generator=torch.Generator().manual_seed(0))
    x = torch.randint(levels, (5, *shape), generator=torch.Generator().manual_seed(1))
    together = likelihood.log_prob(theta, x)
    apart = torch.stack([likelihood.log_prob(theta[i], x) for i in range(4)])
    torch.testing.assert_close(together, apart)
    assert likelihood.mean(theta).shape == (4, 5, *shape)


def test_initial_bias_gives_the_mean():
    mean = torch.tensor([0.1, 0.5, 0.9]).reshape(1, 1, 3)
    bias = Bernoulli((1, 1, 3)).initial_bias(mean)
    torch.testing.assert_close(torch.sigmoid(bias), mean[0])
    grey = torch.full((1, 1, 3), 100.0)
    likelihood = DiscretisedLogistics((1, 1, 3), components=3)
    start = likelihood.mean(likelihood.initial_bias(grey).unsqueeze(0))
    assert (start - grey).abs().max() < 1.0


def test_choose():
    assert choose("binary")[0] == "bernoulli"
    assert choose("8-bit", "categorical") == ("categorical", "as asked")
    assert choose("continuous")[0] == "gaussian"


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("8-bit", "bernoulli", "grey levels are not outcomes of a coin"),
        ("8-bit", "gaussian", "a continuous density on 8-bit levels has no maximum"),
        ("binary", "gaussian", "no maximum"),
        ("sound", "gaussian", "a continuous density at integer samples is no probability"),
        ("binary", "logistics", "use 'bernoulli'"),
        ("8-bit", "poisson", "likelihood: expected auto or one of"),
    ],
)
def test_choose_refuses_with_the_reason(kind, name, text):
    with pytest.raises(ValueError, match=text):
        choose(kind, name)


def test_the_table_of_likelihoods_is_complete():
    assert set(LIKELIHOODS) == {
        "bernoulli",
        "logistics",
        "categorical",
        "gaussian",
        "autoregressive",
    }
