"""MATH 2.1 on a model whose evidence is known: figure 4 of the first issue."""

import pytest
import torch

from kullback.core import Estimate
from kullback.vae import Architecture, build, evaluate
from kullback.vae.evidence import bounds
from oracles import LinearGaussian

SD = torch.tensor([-0.7, -0.4, -0.9], dtype=torch.float64)


@pytest.fixture
def world():
    oracle = LinearGaussian(dims=5, latent=3, sd=0.8)
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    return oracle, z @ oracle.w.T + oracle.b + 0.8 * noise


def test_elbo_plus_kl_is_the_log_evidence_exactly(world):
    """The identity, with every expectation in closed form: ours for the rate, 1e-10."""
    oracle, x = world
    model = oracle.vae(SD, tilt=0.3)
    mean, log_sd = model.encode(x)
    elbo = oracle.expected_log_likelihood(mean, log_sd, x) - model.prior.kl(mean, log_sd).sum(-1)
    gap = oracle.kl_to_posterior(mean, log_sd, x)
    torch.testing.assert_close(elbo + gap, oracle.log_evidence(x), rtol=0, atol=1e-10)


def test_log_weights_integrate_to_the_evidence(world):
    """log w(z) + log q(z|x) − log p(z|x) = log p(x) at every single z, to 1e-10."""
    oracle, x = world
    model = oracle.vae(SD)
    noise = torch.randn(
        7, len(x), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    likelihood, ratio, _ = model.terms(x, noise)
    mean, log_sd = model.encode(x)
    z = mean + log_sd.exp() * noise
    q = torch.distributions.Normal(mean, log_sd.exp()).log_prob(z).sum(-1)
    centre, covariance = oracle.posterior(x)
    p = torch.distributions.MultivariateNormal(centre, covariance).log_prob(z)
    truth = oracle.log_evidence(x).expand(7, -1)
    torch.testing.assert_close(likelihood + ratio + q - p, truth, rtol=0, atol=1e-10)


def test_sampled_elbo_is_the_exact_one_within_its_error(world):
    oracle, x = world
    model = oracle.vae(SD, tilt=0.2)
    draws = 4000
    figures = bounds(model, x, draws=draws, generator=torch.Generator().manual_seed(3))
    mean, log_sd = model.encode(x)
    exact = oracle.expected_log_likelihood(mean, log_sd, x) - model.prior.kl(mean, log_sd).sum(-1)
    difference = Estimate.from_terms(figures.elbo - exact)
    assert abs(difference.value) <= 4.5 * difference.standard_error


def test_the_bound_rises_to_the_evidence(world):
    oracle, x = world
    model = oracle.vae(SD, tilt=0.2)
    truth = oracle.log_evidence(x)
    gaps = []
    for draws in (1, 10, 100, 10_000):
        figures = bounds(model, x, draws=draws, generator=torch.Generator().manual_seed(4))
        gaps.append((truth - figures.importance_weighted).mean().item())
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3]
    assert abs(gaps[3]) < 0.02
    assert figures.effective_draws.min() > 100


def test_error_bars_over_images_cover_the_expected_bound(world):
    """The mean of L_1 over fresh images: 400 repeats, nominal 95 %, z ≤ 4.5 on the count."""
    oracle, _ = world
    model = oracle.vae(SD, tilt=0.2)
    generator = torch.Generator().manual_seed(5)
    n, repeats = 50, 400
    z = torch.randn(repeats * n, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(repeats * n, 5, generator=generator, dtype=torch.float64)
    x = z @ oracle.w.T + oracle.b + 0.8 * noise
    figures = bounds(model, x, draws=1, generator=generator)
    mean, log_sd = model.encode(x)
    # E over images of the exact per-image ELBO equals that over all of them, up to 1/√20000
    exact = oracle.expected_log_likelihood(mean, log_sd, x) - model.prior.kl(mean, log_sd).sum(-1)
    estimate = Estimate.from_terms(figures.elbo.reshape(repeats, n))
    low, high = estimate.interval(0.95)
    covered = ((low <= exact.mean()) & (exact.mean() <= high)).double().mean().item()
    # a t interval with 49 degrees of freedom, read as normal, covers 94.4 %
    assert abs(covered - 0.944) <= 4.5 * (0.944 * 0.056 / repeats) ** 0.5 + 0.01


def test_evaluate_agrees_with_the_exact_evidence(world):
    oracle, x = world
    covariance = oracle.posterior(x)[1]
    best = 0.5 * covariance.diagonal().log()
    model = oracle.vae(best)
    # float32 is the working precision of `check`; the oracle speaks float64
    model.check = lambda data: data
    figures = evaluate(model, x, draws=2000, seed=1)
    truth = oracle.log_evidence(x).mean().item()
    assert figures.elbo.value < figures.log_likelihood.value
    assert figures.log_likelihood.value == pytest.approx(truth, abs=0.01)
    assert figures.gap.value == pytest.approx(
        figures.log_likelihood.value - figures.elbo.value, abs=1e-12
    )
    assert figures.rate.value + figures.distortion.value == pytest.approx(
        -figures.elbo.value, abs=1e-12
    )
    assert figures.active_units == 3
    assert figures.bits_per_dim is None


def test_a_rounded_decoder_moves_figures_little():
    model = build((1, 8, 8), "binary", Architecture(hidden=(16, 16), latent=4))
    x = torch.bernoulli(torch.full((50, 1, 8, 8), 0.3), generator=torch.Generator().manual_seed(0))
    exact = evaluate(model, x, draws=50, seed=1)
    rounded = evaluate(model, x, draws=50, seed=1, precision=torch.bfloat16)
    assert model.decoder.bias.dtype == torch.float32
    assert rounded.rate == exact.rate
    # 64 logits rounded to 8 bits: about 64 · 2^-9 · |logit| / √64 nats an image
    assert abs(rounded.elbo.value - exact.elbo.value) < 0.1
    assert rounded.elbo.value != exact.elbo.value


def test_evaluate_is_a_function_of_the_seed(world):
    oracle, x = world
    model = oracle.vae(SD)
    model.check = lambda data: data
    first, again = (evaluate(model, x, draws=20, seed=7) for _ in range(2))
    assert first == again
    assert type(first).from_dict(first.to_dict()) == first
    assert evaluate(model, x, draws=20, seed=8) != first
