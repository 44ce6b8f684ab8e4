"""Annealed importance sampling against models whose evidence is known."""

import pytest
import torch

from kullback.core import ArgumentValueError, Estimate
from kullback.vae import Architecture, build
from kullback.vae.posterior import Annealed, Annealing, anneal
from oracles import LinearGaussian

SD = torch.tensor([-0.7, -0.4, -0.9], dtype=torch.float64)


def own_data(oracle: LinearGaussian, n: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, oracle.latent, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, oracle.dims, generator=generator, dtype=torch.float64)
    return z @ oracle.w.T + oracle.b + oracle.sd * noise, z, generator


def within(terms: torch.Tensor, value: float = 0.0) -> bool:
    found = Estimate.from_terms(terms)
    return abs(found.value - value) <= 4.5 * found.standard_error


def test_every_weight_is_the_evidence_where_q_is_the_posterior():
    """One latent dimension: q can be p(z|x), log w is constant, and no chain adds any error."""
    oracle = LinearGaussian(dims=4, latent=1, sd=0.5)
    x, z, generator = own_data(oracle, 6, 0)
    model = oracle.vae(0.5 * oracle.posterior(x)[1].diagonal().log())
    found = anneal(model, x, exact=z, settings=Annealing(temperatures=5), generator=generator)
    truth = oracle.log_evidence(x)[:, None].expand(-1, 16)
    torch.testing.assert_close(found.log_weights, truth, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.reverse_log_weights, truth, rtol=0, atol=1e-10)
    assert bool((found.acceptance > 1 - 1e-9).all()) and bool(found.settled.all())


@pytest.mark.sweep(4)
@pytest.mark.parametrize("temperatures", [2, 3, 7])
@pytest.mark.parametrize("tilt", [0.0, 0.6])
def test_weights_and_their_inverses_are_unbiased(temperatures, tilt):
    """E[w] = p(x) forward and E[1/w] = 1/p(x) backward, with as few temperatures as there can be.

    Both ask that every transition keeps its distribution, and that backward moves are in reverse.
    q is wider than the posterior, so that w is bounded; 1/w is not, so it is asked for tilt 0 only.
    """
    oracle = LinearGaussian(dims=3, latent=2, sd=1.0, seed=3)
    x, z, generator = own_data(oracle, 400, 1)
    model = oracle.vae(0.5 * oracle.posterior(x)[1].diagonal().log() + 0.1, tilt)
    settings = Annealing(chains=32, temperatures=temperatures)
    found = anneal(model, x, exact=z, settings=settings, generator=generator)
    truth = oracle.log_evidence(x)[:, None]
    assert within((found.log_weights - truth).exp().mean(-1), 1.0)
    if tilt == 0.0:
        assert within((truth - found.reverse_log_weights).exp().mean(-1), 1.0)


def check_seed(seed: int) -> tuple[Annealed, torch.Tensor]:
    oracle = LinearGaussian(dims=5, latent=3, sd=0.8)
    x, z, generator = own_data(oracle, 50, seed)
    model = oracle.vae(SD, tilt=0.5)  # KL(q || posterior) is 2.6 nats
    found = anneal(model, x, exact=z, settings=Annealing(temperatures=60), generator=generator)
    truth = oracle.log_evidence(x)
    mean, log_sd = model.encode(x)
    gap = oracle.kl_to_posterior(mean, log_sd, x)
    elbo = oracle.expected_log_likelihood(mean, log_sd, x) - model.prior.kl(mean, log_sd).sum(-1)
    lower, upper = found.lower, found.upper
    assert within(lower - truth) and within(upper - truth)
    assert within(lower - elbo - gap) and within(upper - elbo - gap)
    wide = Estimate.from_terms(upper - lower)
    assert -4.5 * wide.standard_error <= wide.value <= 0.5  # they bracket it, in half a nat
    return found, truth


@pytest.mark.slow
def test_both_bounds_agree_with_the_exact_evidence():
    check_seed(0)


@pytest.mark.slow
def test_in_twenty_seeds_and_intervals_cover():
    """95 % intervals over chains, of 1,000 images: each is of one log mean of 16 weights."""
    covered = 0
    for seed in range(20):
        found, truth = check_seed(seed)
        low, high = found.log_evidence().interval(0.95)
        covered += int(((low <= truth) & (truth <= high)).sum())
    assert abs(covered / 1000 - 0.95) <= 4.5 * (0.95 * 0.05 / 1000) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "kind"), [("mlp", "binary"), ("conv", "8-bit"), ("mlp", "continuous")]
)
def test_own_data_of_an_untrained_network_is_bracketed(network, kind):
    architecture = Architecture(network=network, hidden=(), latent=3, neighbours=0)
    torch.manual_seed(0)
    model = build((1, 8, 8), kind, architecture)
    generator = torch.Generator().manual_seed(1)
    z = model.prior.sample(3, generator)
    with torch.no_grad():
        x = model.check(model.likelihood.sample(model.parameters_of(z), generator))
    settings = Annealing(chains=4, temperatures=8, pilots=2)
    found = anneal(model, x, exact=z, settings=settings, generator=generator)
    wide = Estimate.from_terms(found.upper - found.lower)
    assert -4.5 * wide.standard_error <= wide.value <= 0.5
    assert all(weight.requires_grad for weight in model.parameters())


def test_weights_are_a_function_of_the_seed_and_progress_is_told():
    oracle = LinearGaussian(dims=3, latent=2, sd=1.0)
    x, _, _ = own_data(oracle, 3, 1)
    model, told = oracle.vae(torch.zeros(2, dtype=torch.float64)), []
    one, same, other = (
        anneal(
            model,
            x,
            settings=Annealing(temperatures=3),
            generator=torch.Generator().manual_seed(seed),
            progress=lambda done, total: told.append((done, total)),
        )
        for seed in (1, 1, 2)
    )
    assert torch.equal(one.log_weights, same.log_weights)
    assert not torch.equal(one.log_weights, other.log_weights)
    assert told[0] == (3, 3) and one.upper is None and one.reverse_log_weights is None


@pytest.mark.parametrize("field", ["chains", "temperatures", "leapfrog", "pilots"])
def test_settings_are_checked(field):
    with pytest.raises(ArgumentValueError, match=field):
        Annealing(**{field: 0})


def test_exact_draws_of_another_shape_are_refused():
    oracle = LinearGaussian(dims=3, latent=2, sd=1.0)
    x, _, generator = own_data(oracle, 3, 1)
    model = oracle.vae(torch.zeros(2, dtype=torch.float64))
    with pytest.raises(ArgumentValueError, match="exact"):
        anneal(model, x, exact=torch.zeros(3, 3), generator=generator)
    with pytest.raises(ArgumentValueError, match="x"):
        anneal(model, x[:0], generator=generator)


@pytest.mark.parametrize("posterior", ["full", "low_rank", "iaf"])
def test_families_in_float32_are_annealed(posterior):
    """Chains move in float64, the model's weights are float32."""
    model = build((4,), "binary", Architecture(hidden=(8,), latent=2, posterior=posterior, rank=1))
    settings = Annealing(temperatures=2, chains=2, pilots=2)
    found = anneal(model, torch.ones(2, 4), settings=settings, generator=torch.Generator())
    assert bool(found.log_weights.isfinite().all())


@pytest.mark.sweep(3)
@pytest.mark.parametrize(("temperatures", "backward"), [(2, False), (5, True), (12, True)])
def test_evaluations_are_counted_before_they_are_made(temperatures, backward):
    model, rows = build((4,), "binary", Architecture(latent=2)), []
    settings = Annealing(chains=3, temperatures=temperatures, leapfrog=2, pilots=2)
    log_prob = model.likelihood.log_prob

    def counted(parameters, x):
        rows.append(parameters.shape[0] * len(x))
        return log_prob(parameters, x)

    model.likelihood.log_prob = counted
    exact = torch.zeros(5, 2) if backward else None
    generator = torch.Generator().manual_seed(0)
    anneal(model, torch.ones(5, 4), settings=settings, exact=exact, generator=generator)
    assert sum(rows) == 5 * settings.evaluations(backward=backward)
