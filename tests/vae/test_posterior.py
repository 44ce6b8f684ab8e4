"""log p = ELBO + KL in figures, its split, and the aggregate posterior, against exact models."""

import math

import pytest
import torch

from kullback.core import ArgumentValueError, Estimate
from kullback.vae import Architecture, build
from kullback.vae.posterior import (
    Annealing,
    Refit,
    aggregate,
    aggregate_of,
    aggregate_remarks,
    gap_remarks,
    made_by,
    measure_gap,
    refit,
)
from oracles import LinearGaussian

SD = torch.tensor([-0.7, -0.4, -0.9], dtype=torch.float64)


@pytest.mark.slow
def test_the_gap_and_its_split_on_a_linear_gaussian_model():
    """KL, approximation and amortisation in closed form: the best q has sd_d² = 1/precision_dd."""
    oracle = LinearGaussian(dims=5, latent=3, sd=0.8)
    model = oracle.vae(SD, tilt=0.5)
    model.check = lambda data: data  # float32 is its working precision, float64 the oracle's
    x, z = made_by(model, 60, seed=1)
    gap = measure_gap(model, x, exact=z, annealing=Annealing(chains=8, temperatures=50), seed=2)
    mean, log_sd = model.encode(x)
    exact = oracle.kl_to_posterior(mean, log_sd, x)
    centre, covariance = oracle.posterior(x)
    best_sd = (-0.5 * torch.linalg.inv(covariance).diagonal().log()).expand_as(centre)
    best = oracle.kl_to_posterior(centre, best_sd, x)
    each = gap.per_image
    for found, truth in (
        (each.lower - each.elbo, exact),
        (each.upper - each.elbo, exact),
        (each.lower - each.refitted_elbo, best),
        (each.refitted_elbo - each.elbo, exact - best),
        (each.rate, model.prior.kl(mean, log_sd).sum(-1)),
    ):
        difference = Estimate.from_terms(found - truth)
        assert abs(difference.value) <= 4.5 * difference.standard_error + 1e-9
    assert gap.kl_lower.value <= gap.kl_upper.value + 4.5 * gap.width.standard_error
    assert gap.settled == int(((each.upper - each.lower).abs() <= 0.5).sum()) > 30
    assert gap.images == 60
    total = gap.approximation.value + gap.amortisation.value
    assert total == pytest.approx(gap.kl_lower.value, abs=1e-12)
    assert gap.to_dict()["kl_lower"]["bias"] == "low"


def test_refit_finds_the_best_q_of_the_family():
    """Its KL to the posterior is at least the smallest one, and at most 0.01 nats above it."""
    oracle = LinearGaussian(dims=5, latent=3, sd=0.8)
    model = oracle.vae(SD, tilt=0.5)
    x, _ = made_by(model, 20, seed=3)
    mean, log_sd = refit(model, x, generator=torch.Generator().manual_seed(0))
    centre, covariance = oracle.posterior(x)
    best_sd = (-0.5 * torch.linalg.inv(covariance).diagonal().log()).expand_as(centre)
    left = oracle.kl_to_posterior(mean, log_sd, x) - oracle.kl_to_posterior(centre, best_sd, x)
    assert bool((left >= -1e-9).all()) and float(left.mean()) < 0.01


def test_own_data_and_real_data_are_told_apart():
    torch.manual_seed(0)
    model = build((6,), "binary", Architecture(hidden=(8,), latent=2))
    quick = {"annealing": Annealing(chains=4, temperatures=10), "refitting": Refit(steps=20)}
    x, z = made_by(model, 12, seed=0)
    own = measure_gap(model, x, exact=z, **quick)
    test = measure_gap(model, x, **quick)
    assert test.upper is None and test.kl_upper is None and test.width is None
    assert own.upper is not None
    remarks = gap_remarks(test, own)
    assert remarks[0].startswith("There is no upper bound on real data")
    assert "nats apart" in remarks[1]
    assert gap_remarks(test, own) == gap_remarks(test, own)


def collapsed(encoder: bool, decoder: bool):
    """A model whose encoder always says N(0, I), whose decoder ignores z, or both."""
    oracle = LinearGaussian(dims=6, latent=2, sd=0.3)
    if decoder:
        oracle.w = oracle.w * 1e-3
    model = oracle.vae(torch.zeros(2, dtype=torch.float64))
    model.check = lambda data: data
    if encoder:
        model.encode = lambda x: (x.new_zeros(len(x), 2), x.new_zeros(len(x), 2))
    return model


@pytest.mark.slow
def test_a_collapsed_encoder_is_told_from_a_decoder_that_ignores_z():
    quick = {"annealing": Annealing(chains=4, temperatures=30), "refitting": Refit(steps=100)}
    for decoder, words in ((False, "The encoder has collapsed"), (True, "The decoder ignores z")):
        model = collapsed(encoder=True, decoder=decoder)
        x, z = made_by(model, 8, seed=0)
        gap = measure_gap(model, x, exact=z, **quick)
        assert gap.rate.value < 1e-9
        assert any(words in one for one in gap_remarks(gap, gap))


def linear(generator, items, *, latent=2):
    """q(z|x) = N(x, sd²) with x ~ N(0.3, 1.2²), a dimension: q(z) is a product of Gaussians."""
    noise = torch.randn(items, latent, generator=generator, dtype=torch.float64)
    mean, sd = 0.3 + 1.2 * noise, torch.tensor([0.5, 0.9], dtype=torch.float64)[:latent]
    variance = 1.44 + sd**2
    kl = 0.5 * (variance + 0.09 - 1 - variance.log())
    return mean, sd.log().expand_as(mean), kl, 0.5 * (variance / sd**2).log()


@pytest.mark.parametrize("items", [10, 100, 800])
def test_aggregate_bounds_hold_the_population(items):
    """KL(q(z) ‖ p) and I(x; z) in closed form lie between the bounds, in total and each."""
    generator = torch.Generator().manual_seed(items)
    mean, log_sd, kl, information = linear(generator, items)
    found = aggregate_of(mean, log_sd, generator=generator)
    for low, high, truth in (
        (found.kl_low, found.kl_high, kl.sum().item()),
        (found.information_low, found.information_high, information.sum().item()),
    ):
        assert low.value - 4.5 * low.standard_error <= truth
        assert truth <= high.value + 4.5 * high.standard_error
    low, high = found.kl_low_each, found.kl_high_each
    assert bool((low.value - 4.5 * low.standard_error <= kl).all())
    assert bool((kl <= high.value + 4.5 * high.standard_error).all())
    assert bool((low.value <= high.value).all())
    assert found.information_low.value <= math.log(items) + 1e-12
    total = found.kl_high.value + found.information_low.value
    assert total == pytest.approx(found.rate.value, abs=1e-12)
    if items == 800:  # the bounds are tight by then
        assert high.value.sub(low.value).max() < 0.05


@pytest.mark.slow
def test_aggregate_bounds_are_on_the_right_side_in_expectation():
    """400 sets of 5 items, where the biases are large: low is below, high above, by 4.5 se."""
    generator, rows = torch.Generator().manual_seed(0), []
    for _ in range(400):
        mean, log_sd, kl, information = linear(generator, 5)
        one = aggregate_of(mean, log_sd, generator=generator)
        figures = (one.kl_low, one.kl_high, one.information_low, one.information_high)
        rows.append([figure.value for figure in figures])
    kl, information = kl.sum(), information.sum()
    truth = torch.stack([kl, kl, information, information])
    terms = (torch.tensor(rows, dtype=torch.float64) - truth).T
    found = Estimate.from_terms(terms)
    z = found.value / found.standard_error
    assert z[0] < -4.5 and z[1] > 4.5 and z[2] < -4.5 and z[3] > 4.5


def test_separate_codes_reach_the_ceiling_and_the_remark_says_so():
    mean = 100.0 * torch.arange(50.0)[:, None].expand(-1, 2)
    found = aggregate_of(mean, torch.zeros(50, 2), generator=torch.Generator().manual_seed(0))
    assert found.information_low.value == pytest.approx(math.log(50), abs=1e-9)
    assert "log 50" in aggregate_remarks(found)[0]


def test_unused_dimensions_are_counted_with_a_remedy():
    mean = torch.randn(200, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([2, 0, 2])
    log_sd = torch.tensor([-1.0, 0.0, -1.0]).expand(200, 3)
    found = aggregate_of(mean, log_sd, generator=torch.Generator().manual_seed(0))
    assert "1 of 3 dimensions" in aggregate_remarks(found)[-1]
    assert "--latent 2" in aggregate_remarks(found)[-1]


def test_too_few_items_are_refused():
    model = build((2,), "binary")
    with pytest.raises(ArgumentValueError, match="at least 3"):
        aggregate(model, torch.zeros(2, 2))
